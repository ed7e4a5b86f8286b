package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/pgjet/pgjet/internal/operate"
)

func (s *settings) streamStatusCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show what the stream holds, its owner and its limits; exit code 6 if a setting breaks a promise or a limit is near",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return s.askStream(cmd.Context(), func(ctx context.Context, src operate.Source) error {
				f, err := src.ReadStream(ctx)
				if err != nil {
					return err
				}
				if err := show(cmd, f, func(w io.Writer) { writeStream(w, f) }); err != nil {
					return err
				}
				if len(f.Flaws) > 0 {
					return &exitError{exitFindings, fmt.Errorf("stream %s needs an operator: %s", f.Name, f.Flaws[0])}
				}
				return nil
			})
		},
	}
	s.natsFlags(cmd.Flags())
	s.relayFlag(cmd.Flags())
	outputFlag(cmd.Flags())
	return cmd
}

// askStream calls fn with a connection to NATS, for facts about the stream.
func (s *settings) askStream(ctx context.Context, fn func(context.Context, operate.Source) error) error {
	ctx, cancel := context.WithTimeout(ctx, operateTime)
	defer cancel()
	nc, js, err := s.reachNATS()
	if err != nil {
		return err
	}
	defer nc.Close()
	return fn(ctx, operate.Source{NATS: nc, JS: js, Stream: s.stream})
}

func writeStream(w io.Writer, f operate.Stream) {
	line := lines(w)
	line("stream", "%s, made %s", f.Name, f.Created.Format(time.RFC3339))
	line("subjects", "%s", strings.Join(f.Subjects, " "))
	line("outbox", "%s", cmp.Or(strings.TrimSpace(f.Outbox+" "+f.Source), "none is named -> pgjet stream ensure --database-url URL"))
	line("messages", "%d, of %s; %s", f.Messages, atMostOf(f.MaxMsgs, ""), age(f))
	line("bytes", "%d, of %s", f.Bytes, atMostOf(f.MaxBytes, ""))
	line("sequences", "%d to %d", f.First, f.Last)
	line("kept", "%s", atMostOf(int64(f.MaxAge), "s"))
	line("replicas", "%d%s", f.Replicas, prefixed(", led by ", f.Leader))
	line("consumers", "%d", f.Consumers)
	for _, text := range f.Flaws {
		line("why", "%s", text)
	}
}

func atMostOf(n int64, unit string) string {
	if n == 0 {
		return "no limit"
	}
	return fmt.Sprint(n, unit, " at most")
}

func prefixed(prefix, text string) string {
	if text == "" {
		return ""
	}
	return prefix + text
}

func age(f operate.Stream) string {
	if f.FirstAt == nil {
		return "it is empty"
	}
	return fmt.Sprintf("the first %s, the last %s", ago(time.Since(*f.FirstAt)), ago(time.Since(*f.LastAt)))
}

func (s *settings) streamGetCommand() *cobra.Command {
	reveal := false
	cmd := &cobra.Command{
		Use:     "get SEQ",
		Short:   "Show the message at one sequence of the stream, without its payload and the headers that a producer chose unless --reveal",
		Example: "  pgjet stream get 1",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			seq, err := strconv.ParseUint(args[0], 10, 63)
			if err != nil || seq == 0 {
				return usagef("%q is no sequence of a stream, which is a number from 1 on", short(args[0]))
			}
			return s.askStream(cmd.Context(), func(ctx context.Context, src operate.Source) error {
				m, err := src.ReadMessage(ctx, seq, reveal)
				if err != nil {
					return err
				}
				return show(cmd, m, func(w io.Writer) { writeMessage(w, m) })
			})
		},
	}
	s.natsFlags(cmd.Flags())
	s.relayFlag(cmd.Flags())
	outputFlag(cmd.Flags())
	cmd.Flags().BoolVar(&reveal, "reveal", false, "show the payload and the values of headers, too")
	return cmd
}

func writeMessage(w io.Writer, m operate.Message) {
	line := lines(w)
	line("stream", "%s, sequence %d", m.Stream, m.Seq)
	line("subject", "%s", m.Subject)
	line("stored", "%s", m.Time.Format(time.RFC3339Nano))
	if m.Problem != "" {
		line("problem", "it is no event: %s", m.Problem)
	} else {
		line("event", "%s, %s, key %s, seq %d of the outbox", m.ID, m.Type, m.Key, m.OutboxSeq)
	}
	for _, name := range slices.Sorted(maps.Keys(m.Header)) {
		line("header", "%s: %s", name, strings.Join(m.Header[name], ", "))
	}
	switch {
	case m.Data != nil:
		line("payload", "%s", m.Data)
	case m.DataBase64 != nil:
		line("payload", "%d bytes, see -o json", m.Bytes)
	default:
		line("payload", "%d bytes, shown with --reveal", m.Bytes)
	}
	if m.ID != "" {
		line("next", "pgjet event timeline %s", m.ID)
	}
}

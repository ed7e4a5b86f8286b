package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/pgjet/pgjet/events"
)

// A wire speaks to a NATS server without a client library: sending messages that were
// encoded before costs next to nothing, so the limit is the server's. Its answers come to
// wireInbox.
type wire struct {
	conn net.Conn
	r    *bufio.Reader
}

const wireInbox = "_INBOX.bench"

func dialWire(url string) (*wire, error) {
	conn, err := net.DialTimeout("tcp", strings.TrimPrefix(url, "nats://"), 5*time.Second)
	if err != nil {
		return nil, err
	}
	w := &wire{conn, bufio.NewReader(conn)}
	hello := `CONNECT {"verbose":false,"pedantic":false,"headers":true,"no_responders":true,"lang":"go","version":"1","protocol":1}` +
		"\r\nSUB " + wireInbox + " 1\r\n"
	if err := w.send([]byte(hello)); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return w, nil
}

func (w *wire) close() { _ = w.conn.Close() }

func (w *wire) send(frames []byte) error {
	_, err := w.conn.Write(frames)
	return err
}

// answer waits for the next answer of the stream and returns its last sequence.
func (w *wire) answer() (uint64, error) {
	if err := w.conn.SetReadDeadline(time.Now().Add(30 * time.Second)); err != nil {
		return 0, err
	}
	for {
		line, err := w.r.ReadString('\n')
		if err != nil {
			return 0, err
		}
		fields := strings.Fields(line)
		switch {
		case len(fields) == 0:
		case fields[0] == "PING":
			if err := w.send([]byte("PONG\r\n")); err != nil {
				return 0, err
			}
		case fields[0] == "-ERR":
			return 0, errors.New(strings.TrimSpace(line))
		case fields[0] == "MSG":
			return w.readAnswer(fields[len(fields)-1])
		case fields[0] == "HMSG":
			return 0, errors.New("the stream does not answer")
		}
	}
}

func (w *wire) readAnswer(size string) (uint64, error) {
	n, err := strconv.Atoi(size)
	if err != nil {
		return 0, err
	}
	body := make([]byte, n+2)
	if _, err := io.ReadFull(w.r, body); err != nil {
		return 0, err
	}
	var a struct {
		Seq   uint64 `json:"seq"`
		Error *struct {
			Description string `json:"description"`
		} `json:"error"`
	}
	if err := json.Unmarshal(body[:n], &a); err != nil {
		return 0, err
	}
	if a.Error != nil {
		return 0, errors.New(a.Error.Description)
	}
	return a.Seq, nil
}

// A form is a way to append several messages with an expectation.
type form int

const (
	chain form = iota // each message names its predecessor
	batch             // an atomic batch
)

// encodeAppend returns the frames of one append: size messages behind sequence last, with
// the headers of pgjet's relay. The last message asks for an answer.
func encodeAppend(f form, last, size int) []byte {
	var frames []byte
	for i := range size {
		e := loadEvent(last + i + 1)
		subject, header, body := e.Message()
		set := func(name, value string) { header[name] = []string{value} }
		reply, final := "", i == size-1
		if final {
			reply = wireInbox + " "
		}
		if f == chain || i == 0 {
			set("Nats-Expected-Stream", stream)
			set("Nats-Expected-Last-Sequence", strconv.Itoa(last+i))
		}
		if f == chain && last+i > 0 {
			set("Nats-Expected-Last-Msg-Id", loadID(last+i).String())
		}
		if f == chain || final {
			set("Nats-Msg-Id", e.ID.String())
		}
		if f == batch {
			set("Nats-Batch-Id", loadID(last+1).String())
			set("Nats-Batch-Sequence", strconv.Itoa(i+1))
			if final {
				set("Nats-Batch-Commit", "1")
			}
		}
		frames = appendFrame(frames, subject, reply, header, body)
	}
	return frames
}

func appendFrame(frames []byte, subject, reply string, header map[string][]string, body []byte) []byte {
	h := []byte("NATS/1.0\r\n")
	for name, values := range header {
		h = append(h, name+": "+values[0]+"\r\n"...)
	}
	h = append(h, "\r\n"...)
	frames = fmt.Appendf(frames, "HPUB %s %s%d %d\r\n", subject, reply, len(h), len(h)+len(body))
	frames = append(frames, h...)
	frames = append(frames, body...)
	return append(frames, "\r\n"...)
}

// loadEvent returns the nth event, of the same shape as those of [site.fill].
func loadEvent(n int) events.Event {
	key := uuid.NewMD5(uuid.Nil, strconv.AppendInt(nil, int64(n%keys), 10)).String()
	start := fmt.Sprintf(`{"user_id":"%s","email":"user-%d@example.com","name":"User %d","created_at":"2026-01-02T03:04:05Z","note":"`, key, n, n)
	return events.Event{
		ID: loadID(n), Seq: int64(n), Type: "user.created", Key: key, Source: "/users",
		Time:        time.Date(2026, 1, 2, 3, 4, 5, 678_901_000, time.UTC),
		Traceparent: fmt.Sprintf("00-%032x-%016x-01", n+1, n+1),
		Data:        []byte(start + strings.Repeat("x", payloadBytes-len(start)-2) + `"}`),
	}
}

func loadID(n int) uuid.UUID { return uuid.NewMD5(uuid.Max, strconv.AppendInt(nil, int64(n), 10)) }

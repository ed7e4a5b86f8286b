package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	consumerstatus "github.com/pgjet/pgjet/consumers/status"
	"github.com/pgjet/pgjet/internal/operate"
)

// The exit codes of pgjet check are those of Nagios plugins. No other command uses them.
const (
	checkOK = iota
	checkWarning
	checkCritical
	checkUnknown
)

var checkWords = []string{checkOK: "OK", checkWarning: "WARNING", checkCritical: "CRITICAL", checkUnknown: "UNKNOWN"}

// warnings are the reasons that can wait until the morning. All other unhealthy reasons are
// critical.
var warnings = []string{"dead_letters", "quarantined", "saga_waiting", "saga_needs_operator", "slow", "paused", "consumer_paused", "not_ready", "no_answer", "starting", "retention_too_short"}

// A checkVerdict is the JSON output of pgjet check.
type checkVerdict struct {
	State    string            `json:"state"` // OK, WARNING, CRITICAL or UNKNOWN
	Code     int               `json:"code"`  // the exit code, 0 to 3
	Findings []operate.Finding `json:"findings"`
	Values   []checkValue      `json:"values"`
}

// A checkValue is a number that a monitoring system may record.
type checkValue struct {
	Name  string  `json:"name"`
	Label string  `json:"label"` // the stream or consumer that it belongs to; "" is all
	Value float64 `json:"value"`
}

func checkStatusCommand() *cobra.Command {
	var s settings
	var names []string
	cmd := &cobra.Command{
		Use:   "check",
		Short: "Check for a monitoring system whether anything is wrong; exit code 0 OK, 1 warning, 2 critical, 3 unknown",
		Long: `Check for a monitoring system whether anything is wrong, like pgjet status. The exit codes
are those of Nagios plugins, and of this command only: 0 OK, 1 warning, 2 critical, 3
unknown, if neither server answers. The first line is a summary with numbers.`,
		Example: `  pgjet check
  pgjet check --consumer welcome-mailer
  pgjet check -o prometheus > /var/lib/node_exporter/pgjet.prom`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return s.withSource(cmd.Context(), func(ctx context.Context, src operate.Source) error {
				status := src.Status(ctx)
				c, err := judgeCheck(status, names)
				if err != nil {
					return err
				}
				if src.Err() != nil {
					c.set(checkUnknown)
				}
				if err := writeCheck(cmd.OutOrStdout(), outputForm(cmd), c); err != nil {
					return err
				}
				if c.Code != checkOK {
					return &verdictError{c.Code, strings.ToLower(c.State)}
				}
				return nil
			})
		},
	}
	s.databaseFlag(cmd.Flags())
	s.natsFlags(cmd.Flags())
	outputForms(cmd.Flags(), "table, json or prometheus")
	cmd.Flags().StringSliceVar(&names, "consumer", nil, "look at these consumers only")
	return cmd
}

// A verdictError is a verdict of pgjet check other than OK. Any other error of the command means
// UNKNOWN.
type verdictError struct {
	code int
	word string
}

func (e *verdictError) Error() string { return e.word }

func (c *checkVerdict) set(code int) { c.Code, c.State = code, checkWords[code] }

// judgeCheck returns the verdict. If names is not empty, the verdict is of these consumers only.
func judgeCheck(s operate.Status, names []string) (c checkVerdict, err error) {
	c.Findings = []operate.Finding{}
	for _, name := range names {
		known := func(what string) bool { return what == "consumer "+name }
		if len(s.Missing) == 0 && !slices.ContainsFunc(s.Consumers, func(x consumerstatus.Status) bool { return x.Name == name }) {
			return c, fmt.Errorf("there is no consumer %q; see: pgjet consumer ls", name)
		}
		for _, f := range s.Findings {
			if known(f.What) {
				c.Findings = append(c.Findings, f)
			}
		}
	}
	if len(names) == 0 {
		c.Findings = s.Findings
	} else {
		for _, f := range s.Findings {
			if f.What == "database" || f.What == "nats" {
				c.Findings = append(c.Findings, f)
			}
		}
	}
	code := checkOK
	for _, f := range c.Findings {
		switch {
		case f.Healthy:
		case slices.Contains(warnings, f.Code):
			code = max(code, checkWarning)
		default:
			code = checkCritical
		}
	}
	c.set(code)
	c.values(s, names)
	return c, nil
}

// values adds the numbers of these consumers, or of everything if names is empty.
func (c *checkVerdict) values(s operate.Status, names []string) {
	c.Values = []checkValue{}
	add := func(name, label string, value float64) { c.Values = append(c.Values, checkValue{name, label, value}) }
	if len(names) == 0 {
		for _, r := range s.Relays {
			add("pending_events", r.Stream, float64(r.Pending.Events))
			add("pending_oldest_seconds", r.Stream, r.Pending.OldestSeconds)
			add("relay_leads", r.Stream, map[bool]float64{true: 1}[r.Leads])
			add("relay_standbys", r.Stream, float64(r.Standbys))
			if r.Audit != nil {
				add("audit_differences", r.Stream, float64(r.Audit.Differences()))
			}
		}
		if len(s.Relays) > 0 { // every relay reports the same outbox
			add("quarantined_events", "", float64(s.Relays[0].Quarantined.Held))
			add("scheduled_events", "", float64(s.Relays[0].Scheduled.Events))
			add("scheduled_overdue_seconds", "", s.Relays[0].Scheduled.OverdueSeconds)
		}
	}
	for _, x := range s.Consumers {
		if len(names) > 0 && !slices.Contains(names, x.Name) {
			continue
		}
		if !x.Unasked {
			add("consumer_lag_events", x.Name, float64(x.Lag))
			add("consumer_oldest_seconds", x.Name, x.OldestSeconds)
		}
		add("consumer_retrying_events", x.Name, float64(x.Retrying))
		add("consumer_dead_letters", x.Name, float64(x.DeadLetters))
		attempts, failed, _ := x.Failures()
		add("consumer_failed_share", x.Name, float64(failed)/float64(max(attempts, 1)))
		waiting := int64(0)
		for _, w := range x.Sagas {
			waiting += w.Sagas
		}
		add("consumer_waiting_sagas", x.Name, float64(waiting))
	}
}

func writeCheck(out io.Writer, output string, c checkVerdict) error {
	switch output {
	case "json":
		return json.NewEncoder(out).Encode(c)
	case "prometheus":
		_, err := io.WriteString(out, c.exposition())
		return err
	}
	_, err := io.WriteString(out, harmless(c.lines()))
	return err
}

// lines returns the output of a Nagios plugin. The first line has the state, the worst finding and
// the numbers. The other lines are the findings.
func (c *checkVerdict) lines() string {
	var b strings.Builder
	what := "nothing needs you"
	if i := slices.IndexFunc(c.Findings, func(f operate.Finding) bool { return !f.Healthy }); i >= 0 {
		what = c.Findings[i].What + " is " + c.Findings[i].Code
	}
	fmt.Fprintf(&b, "PGJET %s - %s", c.State, strings.ReplaceAll(plain(what), "|", "/"))
	for i, v := range c.Values {
		sep := " "
		if i == 0 {
			sep = " | "
		}
		name := v.Name
		if v.Label != "" {
			name = v.Label + "." + name
		}
		fmt.Fprintf(&b, "%s'%s'=%g", sep, strings.NewReplacer("'", "", "=", "", "|", "").Replace(plain(name)), v.Value)
	}
	b.WriteByte('\n')
	for _, f := range c.Findings {
		if !f.Healthy {
			fmt.Fprintf(&b, "%s %s: %s -> %s\n", f.What, f.Code, strings.ReplaceAll(plain(f.Text), "|", "/"), plain(f.Next))
		}
	}
	return b.String()
}

// exposition returns the verdict in the text format of Prometheus.
func (c *checkVerdict) exposition() string {
	var b strings.Builder
	gauge := func(name, help string) {
		fmt.Fprintf(&b, "# HELP pgjet_check_%s %s\n# TYPE pgjet_check_%[1]s gauge\n", name, help)
	}
	gauge("state", "0 is OK, 1 a warning, 2 critical, 3 unknown.")
	fmt.Fprintf(&b, "pgjet_check_state %d\n", c.Code)
	if len(c.Findings) > 0 {
		gauge("finding", "A reason that applies; 1 if it needs an operator.")
		seen := make(map[string]bool)
		for _, f := range c.Findings {
			line := fmt.Sprintf("pgjet_check_finding{what=%s,reason=%s}", labelValue(f.What), labelValue(f.Code))
			if !seen[line] {
				seen[line] = true
				fmt.Fprintf(&b, "%s %d\n", line, map[bool]int{false: 1}[f.Healthy])
			}
		}
	}
	names := []string{}
	for _, v := range c.Values {
		if !slices.Contains(names, v.Name) {
			names = append(names, v.Name)
		}
	}
	for _, name := range names { // Prometheus wants the samples of a name together
		gauge(name, "As in pgjet status, when this was written.")
		for _, v := range c.Values {
			if v.Name != name {
				continue
			}
			labels := ""
			if v.Label != "" {
				labels = "{of=" + labelValue(v.Label) + "}"
			}
			fmt.Fprintf(&b, "pgjet_check_%s%s %g\n", v.Name, labels, v.Value)
		}
	}
	return b.String()
}

// labelValue returns s as the value of a label.
func labelValue(s string) string {
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(plain(s)) + `"`
}

// checkExit returns the exit code of pgjet check for err. Without a verdict the code is UNKNOWN,
// because to Nagios 1 is a warning and 2 is critical.
func checkExit(err error) int {
	if verdict, ok := errors.AsType[*verdictError](err); ok {
		return verdict.code
	}
	return checkUnknown
}

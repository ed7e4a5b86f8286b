// Command pgjet moves events from PostgreSQL to NATS JetStream and on to the code
// that reacts to them. It is one binary: the user service, the relay, the
// consumers, a development set-up that starts them all, and the commands of operators.
//
// # Files
//
// The package is large because there are many commands. Each one only parses, asks a package
// below, and prints; what operators want to know is in internal/operate.
//
//   - A command is in the file of its noun, such as dead.go, deadlist.go and deadchange.go.
//   - users.go, relay.go and consume.go run for long. process*.go is what these have in common,
//     and dev*.go is pgjet dev.
//   - settings.go and connect.go have the flags and connections that commands share, and
//     config*.go the configuration file.
//   - show.go, table.go, progress.go, confirm.go and exit.go print, ask and end.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime/debug"
	"slices"
	"strings"
	"syscall"

	"github.com/KimMachineGun/automemlimit/memlimit"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

func main() {
	limitMemory(memlimit.FromCgroup)
	os.Exit(run(untilSignal(), os.Args[1:], os.Stdout, os.Stderr))
}

// headroom is the memory of a container that is kept free of Go's heap. It is for pages of the
// program, and for what Go allocates during a collection, such as 19 MiB to hash a password.
const headroom = 16 << 20

// limitMemory makes Go collect garbage before the process exceeds the memory limit of its
// container: nine tenths of it are Go's, less if they leave too little headroom. The runtime obeys
// the container's limit of processors, but not of memory. GOMEMLIMIT in the environment has
// precedence. Without a limit, or with one that cannot be read, nothing changes.
func limitMemory(container memlimit.Provider) {
	_, _ = memlimit.Set(memlimit.WithRatio(1), memlimit.WithProvider(func() (uint64, error) {
		limit, err := container()
		return max(limit/2, min(limit/10*9, limit-min(limit, headroom))), err
	}))
}

// untilSignal returns a context that ends with the first SIGINT or SIGTERM. A
// second one ends the process at once, however soon it comes.
func untilSignal() context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	go func() {
		<-signals
		cancel()
		<-signals
		os.Exit(exitInterrupted)
	}()
	return ctx
}

// run runs the command line args and returns the exit code.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	root := newRoot()
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	began := false
	root.PersistentPreRunE = func(cmd *cobra.Command, _ []string) error {
		if err := configure(cmd); err != nil {
			return err
		}
		began = true
		if err := checkChoices(cmd); err != nil {
			return err
		}
		return findDev(cmd)
	}
	cmd, err := root.ExecuteContextC(ctx)
	if err == nil {
		return exitOK
	}
	fmt.Fprintln(stderr, "pgjet:", harmless(reasoned(err)))
	if cmd.CommandPath() == "pgjet check" {
		return checkExit(err)
	}
	if exit, ok := errors.AsType[*exitError](err); ok {
		return exit.code
	}
	if !began { // cobra refused the command line
		fmt.Fprintf(stderr, "Run '%s --help' to see what it takes.\n", cmd.CommandPath())
		return exitUsage
	}
	return reasonExit(err)
}

func newRoot() *cobra.Command {
	root := &cobra.Command{
		Use:   "pgjet",
		Short: "Facts from PostgreSQL to NATS JetStream, and on to the code that reacts to them",
		Long: `pgjet moves facts from PostgreSQL to NATS JetStream and on to the code that
reacts to them: a transactional outbox, a relay, and durable consumers.

Every flag is also an environment variable: --database-url is PGJET_DATABASE_URL; and
most are keys of a configuration file, see: pgjet config init.`,
		Version:       version(),
		SilenceErrors: true,
		SilenceUsage:  true,
	}
	group(root, statusCommand(), eventCommand(), keyCommand(), retryCommand(), doctorCommand(), checkStatusCommand(), auditCommand(), republishCommand(), opCommand(), explainCommand(), consoleCommand(), versionCommand(), devCommand(), usersCommand(), relayCommand(), consumeCommand(), consumerCommand(),
		migrateCommand(), streamCommand(), outboxCommand(), deadCommand(), replayCommand(), sagaCommand(), servicesCommand(), standinCommand(), natsCommand(), readyCommand())
	root.AddCommand(configCommand(root))
	root.PersistentFlags().String("config", "", "file with configuration, YAML or TOML")
	root.SetFlagErrorFunc(plainFlag)
	completions(root)
	return root
}

// group makes cmd a parent of commands. It shows its help, and refuses an unknown word.
func group(cmd *cobra.Command, commands ...*cobra.Command) *cobra.Command {
	cmd.Args = commandsAlone
	cmd.RunE = func(cmd *cobra.Command, _ []string) error { return cmd.Help() }
	cmd.AddCommand(commands...)
	return cmd
}

// commandsAlone refuses a word that names no command below cmd.
func commandsAlone(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	var names []string
	for _, c := range cmd.Commands() {
		names = append(names, c.Name())
	}
	return fmt.Errorf("unknown command %q for %q%s", args[0], cmd.CommandPath(), suggestion(args[0], names))
}

// oneOfThem refuses anything but one of the words that a command takes.
func oneOfThem(cmd *cobra.Command, args []string) error {
	if len(args) == 1 && !slices.Contains(cmd.ValidArgs, args[0]) {
		return fmt.Errorf("%q is none of %s%s", args[0], strings.Join(cmd.ValidArgs, ", "), suggestion(args[0], cmd.ValidArgs))
	}
	return cobra.ExactArgs(1)(cmd, args)
}

// plainFlag rewords an error about a flag, or about the value of one.
func plainFlag(cmd *cobra.Command, err error) error {
	if name, unknown := strings.CutPrefix(err.Error(), "unknown flag: "); unknown {
		var names []string
		cmd.Flags().VisitAll(func(f *pflag.Flag) { names = append(names, "--"+f.Name) })
		return fmt.Errorf("%w%s", err, suggestion(name, names))
	}
	before, cause, found := strings.Cut(err.Error(), " flag: ")
	if !found {
		return err
	}
	for prefix, want := range map[string]string{
		"strconv.": "want a number", "time: ": "want a duration, such as 90s or 1h30m", "slog: ": "want debug, info, warn or error",
	} {
		if strings.HasPrefix(cause, prefix) {
			return errors.New(before + " flag: " + want)
		}
	}
	return err
}

// version returns the module version that was built in, or "devel".
func version() string {
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" && info.Main.Version != "(devel)" {
		return info.Main.Version
	}
	return "devel"
}

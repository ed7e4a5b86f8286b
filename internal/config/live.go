package config

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/fsnotify/fsnotify"
)

const (
	quiet  = 100 * time.Millisecond // a file has to be unchanged for this long before it is read
	doubt  = time.Second            // the same, if its end may be missing
	lookup = 2 * time.Second        // how often to check without a notification
)

// A Live is the configuration of a running process, which follows its file.
type Live struct {
	load    func() (*Config, error)
	log     *slog.Logger
	current atomic.Pointer[Config]
	loaded  atomic.Int64 // when, in Unix seconds
	apply   []func(old, now *Config)
	said    string // the last failure in the log
	failed  func(context.Context)
}

// NewLive returns a Live that begins with first. To reload it calls load, which reads
// the same layers again.
func NewLive(first *Config, load func() (*Config, error), log *slog.Logger) *Live {
	l := &Live{load: load, log: log}
	l.current.Store(first)
	l.loaded.Store(time.Now().Unix())
	return l
}

// Current returns the current configuration.
func (l *Live) Current() *Config { return l.current.Load() }

// Subscribe has apply called with each change, one at a time. apply cannot refuse a change:
// both configurations are valid. Call Subscribe before [Live.Run].
func (l *Live) Subscribe(apply func(old, now *Config)) { l.apply = append(l.apply, apply) }

// Run follows the file until ctx ends. It reads the file when it has changed and was then
// left unchanged for a moment, or at once when a signal comes from ask. A file that is
// invalid, empty or gone changes nothing, and is reported once.
func (l *Live) Run(ctx context.Context, ask <-chan os.Signal) error {
	for _, w := range l.Current().warnings {
		l.log.WarnContext(ctx, "the configuration is unwise", "warning", w)
	}
	m, err := newMetrics(l)
	if err != nil {
		return fmt.Errorf("metrics of the configuration: %w", err)
	}
	defer m.stop()
	l.failed = func(ctx context.Context) { m.failures.Add(ctx, 1) }
	path := l.Current().file
	events, errs, done := l.watch(ctx, path)
	defer done()
	poll, settled := time.NewTicker(lookup), time.NewTimer(quiet)
	defer poll.Stop()
	defer settled.Stop()
	last, doubted := l.Current().stamp, false
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ask:
			l.reload(ctx, true)
		case <-events:
		case <-errs: //nolint:errcheck // whatever it is: some events may be lost, and the file is looked at below
		case <-poll.C:
		case <-settled.C:
			switch now := stampOf(path); {
			case !now.is(last) || path == "":
			case !doubted && unfinished(path):
				doubted = true
				settled.Reset(doubt)
			case now.is(l.Current().stamp):
				l.said = "" // the good file is back
			default:
				l.reload(ctx, false)
			}
		}
		if now := stampOf(path); !now.is(last) {
			last, doubted = now, false
			settled.Reset(quiet)
		}
	}
}

// watch returns the events in the directory of the file: a replaced file appears there
// again, and so does a link to a replaced directory. Without events, the file is checked
// every two seconds.
func (l *Live) watch(ctx context.Context, path string) (events <-chan fsnotify.Event, errs <-chan error, done func()) {
	if path == "" {
		return nil, nil, func() {}
	}
	w, err := fsnotify.NewWatcher()
	if err == nil {
		if err = w.Add(filepath.Dir(path)); err == nil {
			return w.Events, w.Errors, func() { w.Close() }
		}
		w.Close()
	}
	l.log.WarnContext(ctx, "the directory of the configuration cannot be watched, will look at the file every 2s", "file", path, "err", err)
	return nil, nil, func() {}
}

// reload applies the current configuration, if all of it is valid.
func (l *Live) reload(ctx context.Context, asked bool) {
	old := l.Current()
	now, err := l.load()
	if err == nil {
		err = old.permits(now)
	}
	if err != nil {
		l.refuse(ctx, asked, err)
		return
	}
	l.said = ""
	l.loaded.Store(time.Now().Unix())
	l.current.Store(now)
	keys := old.differences(now)
	if len(keys) == 0 && old.hash == now.hash {
		if asked {
			l.log.InfoContext(ctx, "configuration read again, no value has changed", "file", now.file, "hash", now.hash)
		}
		return
	}
	for _, apply := range l.apply { // also if only other processes use what has changed: the hash covers everything
		apply(old, now)
	}
	if len(keys) == 0 {
		keys = []string{"none of this process"}
	}
	l.log.InfoContext(ctx, "configuration changed", "file", now.file, "keys", strings.Join(keys, " "), "hash", now.hash)
}

func (l *Live) refuse(ctx context.Context, asked bool, err error) {
	l.failed(ctx)
	text := strings.ReplaceAll(err.Error(), "\n", "; ")
	if text == l.said && !asked {
		return
	}
	l.said = text
	l.log.ErrorContext(ctx, "the configuration was not changed, the last good one stays", "err", text, "hash", l.Current().hash)
}

// permits returns why a running process cannot go from c to now.
func (c *Config) permits(now *Config) error {
	if now.empty && !c.empty {
		return fmt.Errorf("%s is empty, which is for the start alone: write {} into it for the defaults", now.file)
	}
	var errs []error
	for _, k := range append(slices.Clone(c.schema.keys), c.added(now)...) {
		was, is := c.values[k.Name], now.values[k.Name]
		if k.Live || !k.Used || was.Text == is.Text {
			continue
		}
		errs = append(errs, fmt.Errorf("%s: %s is %q, but the process runs with %q: restart it, or take the change back",
			cmp.Or(is.Origin, now.file), k.Name, k.mask(is.Text), k.mask(was.Text)))
	}
	return errors.Join(errs...)
}

// added returns the keys that now has and c does not: those of new entries of groups.
func (c *Config) added(now *Config) []*Key {
	return slices.DeleteFunc(slices.Clone(now.schema.keys), func(k *Key) bool { return c.schema.byName[k.Name] != nil })
}

// differences lists the keys whose values differ.
func (c *Config) differences(other *Config) []string {
	var keys []string
	for _, k := range c.schema.keys {
		if k.Used && c.values[k.Name].Text != other.values[k.Name].Text {
			keys = append(keys, k.Name)
		}
	}
	return keys
}

// A stamp identifies a version of a file without reading it.
type stamp struct {
	size     int64
	modified time.Time
	target   string // after all links
	err      string
	file     os.FileInfo // nil with err
}

// is reports whether s and other are the same version. A file may take the place of one of the same
// size within the resolution of their times, so they also have to be the same file.
func (s stamp) is(other stamp) bool {
	same := s.file == nil || other.file == nil || os.SameFile(s.file, other.file)
	s.file, other.file = nil, nil
	return same && s == other
}

func stampOf(path string) stamp {
	if path == "" {
		return stamp{}
	}
	info, err := os.Stat(path)
	if err != nil {
		cause := err
		if p, ok := errors.AsType[*fs.PathError](err); ok {
			cause = p.Err
		}
		return stamp{err: cause.Error()}
	}
	target, _ := filepath.EvalSymlinks(path) // os.Stat has just done the same
	return stamp{size: info.Size(), modified: info.ModTime(), target: target, file: info}
}

// unfinished reports whether the file may be incomplete: its last line has no end.
func unfinished(path string) bool {
	b, err := read(path)
	return err == nil && !bytes.HasSuffix(b, []byte("\n"))
}

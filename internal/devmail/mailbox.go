package devmail

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"
)

// Names of files: a mail is <id>.mail, and <id>.mail.new until it is whole. Ids are
// UUIDv7, so names sort by age.
const (
	mailExt = ".mail"
	newExt  = ".mail.new"
)

// A mailbox keeps mails in the order in which they came, and their files if it has
// a directory.
type mailbox struct {
	dir      string // "": memory only
	log      *slog.Logger
	maxMails int
	maxBytes int64

	mu    sync.Mutex
	mails []Mail // oldest first; a mail never changes
	bytes int64  // sum of their sizes
}

// An envelope is the first line of a mail's file, as JSON. The mail follows, byte
// for byte as it was sent.
type envelope struct {
	From string    `json:"from"`
	To   []string  `json:"to"`
	Time time.Time `json:"time"`
	Size int       `json:"size"` // of what follows: a torn file is noticed
}

// openMailbox returns a mailbox with the mails found in dir.
func openMailbox(dir string, log *slog.Logger) (*mailbox, error) {
	b := &mailbox{dir: dir, log: log, maxMails: 1000, maxBytes: 128 << 20}
	if dir == "" {
		return b, nil
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	files, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	for _, f := range files {
		b.load(f.Name())
	}
	return b, nil
}

// load adds the mail in the file called name. It removes an unfinished file, logs one that
// it cannot read, and ignores one that is no mail.
func (b *mailbox) load(name string) {
	path := filepath.Join(b.dir, name)
	if strings.HasSuffix(name, newExt) {
		_ = os.Remove(path) // its sender never got 250
		return
	}
	id, ok := strings.CutSuffix(name, mailExt)
	if !ok {
		return
	}
	m, err := readMail(path)
	if err != nil {
		b.log.Warn("mail file is damaged, passed over", "file", path, "err", err)
		return
	}
	m.ID = id
	b.add(m)
}

func readMail(path string) (Mail, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return Mail{}, err
	}
	line, raw, _ := bytes.Cut(data, []byte("\n"))
	var e envelope
	if err := json.Unmarshal(line, &e); err != nil {
		return Mail{}, fmt.Errorf("read envelope: %w", err)
	}
	if len(raw) != e.Size {
		return Mail{}, fmt.Errorf("it holds %d bytes of %d", len(raw), e.Size)
	}
	return e.mail(raw), nil
}

func (e envelope) mail(raw []byte) Mail {
	m := parse(raw)
	m.From, m.To, m.Time = e.From, append([]string{}, e.To...), e.Time.UTC()
	return m
}

// put stores a mail as the newest. Once it returns nil, the mail outlives a restart
// if the mailbox has a directory.
func (b *mailbox) put(from string, to []string, raw []byte) error {
	e := envelope{From: from, To: to, Time: time.Now().UTC().Truncate(time.Millisecond), Size: len(raw)}
	m := e.mail(raw)

	b.mu.Lock() // also while writing: ids are in the order of mails
	defer b.mu.Unlock()
	id, err := uuid.NewV7()
	if err != nil {
		return fmt.Errorf("make a mail id: %w", err)
	}
	m.ID = id.String()
	if b.dir != "" {
		if err := b.write(m.ID, e, raw); err != nil {
			return fmt.Errorf("write mail: %w", err)
		}
	}
	b.add(m)
	return nil
}

// write makes the file of a mail, as a whole or not at all.
func (b *mailbox) write(id string, e envelope, raw []byte) error {
	line, err := json.Marshal(e)
	if err != nil {
		return err
	}
	path := filepath.Join(b.dir, id)
	err = writeSynced(path+newExt, line, []byte("\n"), raw)
	if err == nil {
		err = os.Rename(path+newExt, path+mailExt)
	}
	if err == nil {
		err = syncDir(b.dir)
	}
	if err != nil { // the sender will try again
		_ = os.Remove(path + newExt)
		_ = os.Remove(path + mailExt)
	}
	return err
}

func writeSynced(path string, parts ...[]byte) (err error) {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	for _, p := range parts {
		if _, err := f.Write(p); err != nil {
			return err
		}
	}
	return f.Sync()
}

// syncDir makes a rename in dir durable.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// add appends m and drops the oldest mails that are then too many. The caller holds
// mu, or is alone.
func (b *mailbox) add(m Mail) {
	b.mails = append(b.mails, m)
	b.bytes += m.size

	n, left := 0, b.bytes
	for kept := len(b.mails); kept > b.maxMails || kept > 1 && left > b.maxBytes; kept-- {
		left -= b.mails[n].size
		n++
	}
	if err := b.drop(n); err != nil {
		b.log.Warn("remove old mail files, they come back at the next start", "err", err)
	}
}

// drop removes the n oldest mails, even those whose files it cannot remove.
func (b *mailbox) drop(n int) error {
	var errs []error
	for _, m := range b.mails[:n] {
		b.bytes -= m.size
		if b.dir == "" {
			continue
		}
		err := os.Remove(filepath.Join(b.dir, m.ID+mailExt))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	b.mails = slices.Delete(b.mails, 0, n)
	return errors.Join(errs...)
}

// empty removes all mails.
func (b *mailbox) empty() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.drop(len(b.mails))
}

// list returns all mails, newest first, and a version that changes when they do.
func (b *mailbox) list() (mails []Mail, version string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	mails = append([]Mail{}, b.mails...) // never nil: JSON shows it
	slices.Reverse(mails)
	if len(mails) == 0 {
		return mails, `"0"`
	}
	return mails, fmt.Sprintf(`"%d-%s"`, len(mails), mails[0].ID)
}

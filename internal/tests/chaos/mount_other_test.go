//go:build !linux

package chaos

import "errors"

func mount(source, dir, kind string, again bool, options string) error { return errors.ErrUnsupported }

func unmount(dir string) error { return errors.ErrUnsupported }

//go:build !linux

package main

import (
	"errors"
	"syscall"
)

func mount(source, dir, kind string, again bool, options string) error { return errors.ErrUnsupported }

func unmount(dir string) error { return errors.ErrUnsupported }

func ours() *syscall.SysProcAttr { return nil }

package main

import (
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// The death signal belongs to the thread that asked for it, so the main goroutine keeps the main thread.
func init() { runtime.LockOSThread() }

func endWithParent(parent int) error {
	if err := unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL), 0, 0, 0); err != nil {
		return fmt.Errorf("PR_SET_PDEATHSIG: %w", err)
	}
	// The parent may have died before the call.
	if os.Getppid() != parent {
		return fmt.Errorf("the parent, process %d, is gone", parent)
	}
	return nil
}

// Podyard's supervisor: one static binary that the host puts into every guest over SSH. It starts processes from exact
// argument bytes (no shell ever sees them), owns the main process of container 0 beyond the SSH connection that started
// it, and does the few things the host needs root for: volumes, names, power-off.
//
// It is called as `<binary> <subcommand>` through whatever login shell the guest has, so everything variable comes as a
// frame on stdin (frame.go) and every answer goes as a frame to stderr; stdout carries raw bytes only.
package main

import (
	"crypto/sha256"
	"encoding/hex"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
)

func main() {
	if len(os.Args) < 2 {
		os.Stderr.WriteString("podyard-supervisor is started by the Podyard host; it has no use by hand\n")
		os.Exit(2)
	}
	// Caught, not ignored: an ignored signal would stay ignored in the processes started from here. Without this a write
	// to a client that went away would end the supervisor before it ended the client's process.
	caught := make(chan os.Signal, 16)
	signal.Notify(caught, syscall.SIGPIPE, syscall.SIGHUP)
	go func() {
		for range caught {
		}
	}()
	os.Exit(dispatch(os.Args[1], os.Args[2:]))
}

func dispatch(command string, arguments []string) int {
	switch command {
	case "verify":
		return verify(arguments)
	case "exec":
		return runExec()
	case "serve":
		return runServe(arguments)
	case "run":
		return answer(true, hasFlag(arguments, "elevated"), runMain)
	case "daemon":
		return runDaemon()
	case "state":
		return answer(false, false, func([]byte) (any, error) { return mainState() })
	case "wait":
		return answer(false, false, func([]byte) (any, error) { return waitForExit() })
	case "attach":
		return runAttach()
	case "signal", "resize":
		return answer(true, false, func(header []byte) (any, error) { return nil, controlMain(command, header) })
	case "logs":
		return runLogs()
	case "mount":
		return answer(true, true, mountVolumes)
	case "configure":
		return answer(true, true, configure)
	case "shutdown":
		return runShutdown()
	case "power-off":
		return powerOffLater()
	case "statistics":
		return answer(false, false, func([]byte) (any, error) { return statistics() })
	}
	os.Stderr.WriteString("podyard-supervisor: unknown subcommand " + command + "\n")
	return 2
}

// answer runs a subcommand that takes at most a header and gives one answer or one failure.
func answer(hasHeader, needsRoot bool, work func(header []byte) (any, error)) int {
	if needsRoot && os.Geteuid() != 0 {
		// Returns only if root cannot be had; on success this process has become `sudo`, and not a word was said yet.
		err := elevate()
		return fail(newControl(), err)
	}
	control := newControl()
	var header []byte
	if hasHeader {
		var err error
		if header, err = readHeader(newFrameReader(os.Stdin)); err != nil {
			return fail(control, err)
		}
	}
	result, err := work(header)
	if err != nil {
		return fail(control, err)
	}
	control.sendJSON(frameAnswer, result)
	return 0
}

// verify exits 0 if this very file has the given SHA-256: every system can run it, not every one has sha256sum.
func verify(arguments []string) int {
	path, err := os.Executable()
	if err != nil || len(arguments) != 1 {
		return 1
	}
	file, err := os.Open(path)
	if err != nil {
		return 1
	}
	defer file.Close()
	hash := sha256.New()
	if _, err := io.Copy(hash, file); err != nil || hex.EncodeToString(hash.Sum(nil)) != arguments[0] {
		return 1
	}
	return 0
}

// baseDirectory is where this binary lies: private to the login user, and the home of the main process's files.
func baseDirectory() string {
	path, err := os.Executable()
	if err != nil {
		path = os.Args[0]
	}
	return filepath.Dir(path)
}

func hasFlag(arguments []string, name string) bool {
	for _, argument := range arguments {
		if argument == name {
			return true
		}
	}
	return false
}

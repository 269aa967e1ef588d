// Command podyard-init is the one binary that we bring into side-cars' sandboxes; static, so that it runs in any image.
//
//	podyard-init                    holds the namespaces of a Pod: reaps zombies, exits at once on SIGTERM
//	podyard-init exec [flags] ARG…  becomes the process of `kubectl exec`: decodes its arguments and execs
//	podyard-init kill PID           kills the session of that process
//
// The exec form exists because the Docker API carries arguments in JSON, where a byte that is not UTF-8 is lost, and
// because it has no way to kill what it started: so the arguments come in base64 (in pieces below the kernel's limit
// for one argument), and our PID in this namespace is announced on stdout before the real program runs.
package main

import (
	"encoding/base64"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"unsafe"
)

const defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

func main() {
	if len(os.Args) < 2 {
		hold()
		return
	}
	switch os.Args[1] {
	case "exec":
		os.Exit(execute(os.Args[2:]))
	case "kill":
		os.Exit(kill(os.Args[2:]))
	default:
		fmt.Fprintf(os.Stderr, "podyard-init: unknown command %q, expected exec or kill\n", os.Args[1])
		os.Exit(2)
	}
}

// hold waits for a signal to end. As PID 1 of a shared PID namespace it also reaps the orphans of the other containers.
func hold() {
	signals := make(chan os.Signal, 16)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT, syscall.SIGCHLD)
	for received := range signals {
		if received != syscall.SIGCHLD {
			os.Exit(0)
		}
		for {
			pid, err := syscall.Wait4(-1, nil, syscall.WNOHANG, nil)
			if errors.Is(err, syscall.EINTR) {
				continue
			}
			if pid <= 0 || err != nil {
				break
			}
		}
	}
}

// execute replaces this process by the program in the arguments; it returns an exit code only on failure (126, 127 as a
// shell has them). Arguments: -size=COLUMNSxROWS, -null (stdin from /dev/null), then pieces: "=BASE64" begins an
// argument, "+BASE64" continues it.
func execute(arguments []string) int {
	var program [][]byte
	useNull := false
	for _, argument := range arguments {
		switch {
		case argument == "-null":
			useNull = true
		case strings.HasPrefix(argument, "-size="):
			setTerminalSize(strings.TrimPrefix(argument, "-size="))
		case strings.HasPrefix(argument, "="), strings.HasPrefix(argument, "+") && len(program) > 0:
			piece, err := base64.StdEncoding.DecodeString(argument[1:])
			if err != nil {
				return fail(125, "podyard-init: an argument is not base64: %v", err)
			}
			if argument[0] == '=' {
				program = append(program, piece)
			} else {
				program[len(program)-1] = append(program[len(program)-1], piece...)
			}
		default:
			return fail(125, "podyard-init: unexpected argument %q", argument)
		}
	}
	if len(program) == 0 {
		return fail(125, "podyard-init: no program given")
	}
	if useNull {
		null, err := syscall.Open("/dev/null", syscall.O_RDONLY, 0)
		if err == nil {
			_ = syscall.Dup3(null, 0, 0)
			_ = syscall.Close(null)
		}
	}
	if _, err := os.Stdout.WriteString(fmt.Sprintf("podyard-pid:%010d;", os.Getpid())); err != nil {
		return 125
	}
	argv := make([]string, len(program))
	for index, argument := range program {
		argv[index] = string(argument)
	}
	path, err := find(argv[0])
	if err == nil {
		err = syscall.Exec(path, argv, os.Environ())
	}
	code := 126
	if errors.Is(err, syscall.ENOENT) || errors.Is(err, errNotInPath) {
		code = 127
	}
	return fail(code, "OCI runtime exec failed: exec failed: unable to start container process: exec: %q: %v: unknown", argv[0], err)
}

var errNotInPath = errors.New("executable file not found in $PATH")

func find(name string) (string, error) {
	if strings.Contains(name, "/") {
		return name, nil
	}
	if name == "" {
		return "", errNotInPath
	}
	path, set := os.LookupEnv("PATH")
	if !set {
		path = defaultPath
	}
	var forbidden error
	for _, directory := range filepath.SplitList(path) {
		if directory == "" {
			directory = "."
		}
		candidate := directory + "/" + name
		information, err := os.Stat(candidate)
		if err != nil || information.IsDir() {
			continue
		}
		if syscall.Access(candidate, 1 /* X_OK */) == nil {
			return candidate, nil
		}
		forbidden = syscall.EACCES
	}
	if forbidden != nil {
		return "", forbidden
	}
	return "", errNotInPath
}

func fail(code int, format string, values ...any) int {
	fmt.Fprintf(os.Stderr, format+"\n", values...)
	return code
}

func setTerminalSize(size string) {
	columns, rows, _ := strings.Cut(size, "x")
	width, err := strconv.ParseUint(columns, 10, 16)
	height, err2 := strconv.ParseUint(rows, 10, 16)
	if err != nil || err2 != nil {
		return
	}
	window := struct{ rows, columns, x, y uint16 }{rows: uint16(height), columns: uint16(width)}
	_, _, _ = syscall.Syscall(syscall.SYS_IOCTL, 1, syscall.TIOCSWINSZ, uintptr(unsafe.Pointer(&window)))
}

// kill ends every process of the session that PID leads (an exec'd process leads its own). Twice, for a child forked in
// between. Exit code 1: this user may not kill one of them.
func kill(arguments []string) int {
	if len(arguments) != 1 {
		return fail(2, "podyard-init: kill takes one PID")
	}
	leader, err := strconv.Atoi(arguments[0])
	if err != nil || leader <= 1 {
		return fail(2, "podyard-init: %q is not a PID above 1", arguments[0])
	}
	code := 0
	end := func(pid int) {
		if errors.Is(syscall.Kill(pid, syscall.SIGKILL), syscall.EPERM) {
			code = 1
		}
	}
	for round := 0; round < 2; round++ {
		end(leader)
		entries, err := os.ReadDir("/proc")
		if err != nil {
			return code
		}
		for _, entry := range entries {
			pid, err := strconv.Atoi(entry.Name())
			if err == nil && pid > 1 && pid != os.Getpid() && sessionOf(pid) == leader {
				end(pid)
			}
		}
	}
	return code
}

// sessionOf reads field 6 of /proc/PID/stat; the command's name (field 2) may hold blanks and parentheses.
func sessionOf(pid int) int {
	content, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return -1
	}
	text := string(content)
	fields := strings.Fields(text[strings.LastIndexByte(text, ')')+1:])
	if len(fields) < 4 {
		return -1
	}
	session, err := strconv.Atoi(fields[3])
	if err != nil {
		return -1
	}
	return session
}

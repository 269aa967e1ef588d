// Starting a process with execve semantics: the argument bytes go to the kernel as they came, the first one is looked up
// in PATH as execvp does it, and no shell takes part. Codes as a shell reports them: 127 not found, 126 not runnable.
package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"github.com/creack/pty"
)

type terminalSize struct {
	Columns uint16 `json:"columns"`
	Rows    uint16 `json:"rows"`
}

type launchRequest struct {
	Argv             [][]byte          `json:"argv"`
	Environment      map[string]string `json:"environment"`
	WorkingDirectory string            `json:"workingDirectory"`
	CreateDirectory  bool              `json:"createDirectory"`
	Stdin            bool              `json:"stdin"`
	Terminal         *terminalSize     `json:"terminal"`
	UserID           *uint32           `json:"userId"`
	GroupID          *uint32           `json:"groupId"`
}

// launched holds our ends of a process's streams. With a terminal, all three are its master.
type launched struct {
	process  *os.Process
	stdin    *os.File
	stdout   *os.File
	stderr   *os.File
	terminal *os.File
}

// launchError carries the exit code a shell would give.
type launchError struct {
	exitCode int
	message  string
}

func (e *launchError) Error() string { return e.message }

const defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

func launch(request *launchRequest) (*launched, error) {
	if len(request.Argv) == 0 || len(request.Argv[0]) == 0 {
		return nil, &launchError{127, "no command was given"}
	}
	credential, err := credentialFor(request)
	if err != nil {
		return nil, &launchError{126, err.Error()}
	}
	environment := environmentFor(request, credential)
	if err := prepareDirectory(request, credential); err != nil {
		return nil, &launchError{126, err.Error()}
	}
	arguments := make([]string, len(request.Argv))
	for index, argument := range request.Argv {
		arguments[index] = string(argument)
	}
	path, err := lookUp(arguments[0], environment["PATH"], request.WorkingDirectory)
	if err != nil {
		return nil, err
	}

	result := &launched{}
	attributes := &os.ProcAttr{Dir: request.WorkingDirectory, Env: flatten(environment), Sys: &syscall.SysProcAttr{Setsid: true, Credential: credential}}
	var theirs []*os.File
	if request.Terminal != nil {
		theirs, err = result.openTerminal(*request.Terminal, credential)
		attributes.Sys.Setctty = true
	} else {
		theirs, err = result.openPipes(request.Stdin)
	}
	if err != nil {
		result.close()
		return nil, &launchError{126, fmt.Sprintf("no terminal or pipe could be opened: %v", err)}
	}
	attributes.Files = theirs
	dieWithParent(attributes.Sys)
	result.process, err = os.StartProcess(path, arguments, attributes)
	for index, file := range theirs {
		if index == 0 || file != theirs[0] {
			file.Close()
		}
	}
	if err != nil {
		result.close()
		return nil, describeStart(arguments[0], err)
	}
	return result, nil
}

func (l *launched) openTerminal(size terminalSize, credential *syscall.Credential) ([]*os.File, error) {
	master, slave, err := pty.Open()
	if err != nil {
		return nil, err
	}
	l.terminal, l.stdin, l.stdout = master, master, master
	resizeTerminal(master, size.Columns, size.Rows)
	if credential != nil {
		slave.Chown(int(credential.Uid), -1)
	}
	return []*os.File{slave, slave, slave}, nil
}

func (l *launched) openPipes(withInput bool) (theirs []*os.File, err error) {
	defer func() {
		if err != nil {
			for _, file := range theirs {
				file.Close()
			}
		}
	}()
	var file *os.File
	if withInput {
		file, l.stdin, err = os.Pipe()
	} else {
		file, err = os.Open(os.DevNull)
	}
	if err != nil {
		return theirs, err
	}
	theirs = append(theirs, file)
	if withInput {
		widenPipe(l.stdin)
	}
	if l.stdout, file, err = os.Pipe(); err != nil {
		return theirs, err
	}
	widenPipe(l.stdout)
	theirs = append(theirs, file)
	if l.stderr, file, err = os.Pipe(); err != nil {
		return theirs, err
	}
	return append(theirs, file), nil
}

func (l *launched) close() {
	for _, file := range []*os.File{l.stdin, l.stdout, l.stderr} {
		if file != nil {
			file.Close()
		}
	}
}

// signal goes to the whole process group; a stopped one is woken to receive it.
func (l *launched) signal(number syscall.Signal) error {
	err := syscall.Kill(-l.process.Pid, number)
	if number == syscall.SIGTERM || number == syscall.SIGHUP {
		syscall.Kill(-l.process.Pid, syscall.SIGCONT)
	}
	return err
}

// endOfInput closes a pipe; a terminal gets its end-of-file character.
func (l *launched) endOfInput() {
	if l.terminal != nil {
		l.terminal.Write([]byte{4})
	} else if l.stdin != nil {
		l.stdin.Close()
	}
}

func resizeTerminal(terminal *os.File, columns, rows uint16) {
	pty.Setsize(terminal, &pty.Winsize{Cols: columns, Rows: rows})
}

type processExit struct {
	ExitCode int `json:"exitCode"`
	Signal   int `json:"signal,omitempty"`
}

func exitOf(state *os.ProcessState) processExit {
	if status, ok := state.Sys().(syscall.WaitStatus); ok && status.Signaled() {
		return processExit{ExitCode: 128 + int(status.Signal()), Signal: int(status.Signal())}
	}
	return processExit{ExitCode: state.ExitCode()}
}

func lookUp(name, path, directory string) (string, error) {
	if strings.Contains(name, "/") {
		return name, nil
	}
	denied := false
	for _, folder := range filepath.SplitList(path) {
		if folder == "" {
			folder = "."
		}
		candidate := filepath.Join(folder, name)
		checked := candidate
		if !filepath.IsAbs(candidate) {
			candidate = "./" + candidate
			checked = filepath.Join(directory, candidate)
		}
		information, err := os.Stat(checked)
		switch {
		case err != nil:
			denied = denied || errors.Is(err, fs.ErrPermission)
		case information.IsDir():
		case information.Mode()&0o111 == 0:
			denied = true
		default:
			return candidate, nil
		}
	}
	if denied {
		return "", &launchError{126, fmt.Sprintf("%q: permission denied", name)}
	}
	return "", &launchError{127, fmt.Sprintf("%q: executable file not found in $PATH", name)}
}

func describeStart(name string, err error) error {
	var number syscall.Errno
	switch errors.As(err, &number); number {
	case syscall.ENOENT, syscall.ENOTDIR:
		return &launchError{127, fmt.Sprintf("%q: no such file or directory", name)}
	case syscall.ENOEXEC:
		return &launchError{126, fmt.Sprintf("%q: not an executable of this system (a script needs a #! line)", name)}
	case syscall.EINVAL:
		return &launchError{126, fmt.Sprintf("%q: an argument or variable contains a zero byte", name)}
	case 0:
		return &launchError{126, fmt.Sprintf("%q: %v", name, err)}
	}
	return &launchError{126, fmt.Sprintf("%q: %s", name, number.Error())}
}

// credentialFor gives nil when the process shall run as we do.
func credentialFor(request *launchRequest) (*syscall.Credential, error) {
	if request.UserID == nil && request.GroupID == nil {
		return nil, nil
	}
	uid := uint32(os.Geteuid())
	if request.UserID != nil {
		uid = *request.UserID
	}
	gid := uint32(0)
	var groups []uint32
	if account, err := user.LookupId(strconv.FormatUint(uint64(uid), 10)); err == nil {
		gid = parseId(account.Gid)
		if ids, err := account.GroupIds(); err == nil {
			for _, id := range ids {
				groups = append(groups, parseId(id))
			}
		}
	}
	if request.GroupID != nil {
		gid = *request.GroupID
	}
	if os.Geteuid() != 0 {
		if uid == uint32(os.Geteuid()) && (request.GroupID == nil || gid == uint32(os.Getegid())) {
			return nil, nil
		}
		return nil, fmt.Errorf("running as user %d and group %d needs root in the guest, but the login user is %d", uid, gid, os.Geteuid())
	}
	return &syscall.Credential{Uid: uid, Gid: gid, Groups: groups}, nil
}

func parseId(text string) uint32 {
	number, err := strconv.ParseUint(text, 10, 32)
	if err != nil {
		return 65534
	}
	return uint32(number)
}

// environmentFor is the login's environment without what only concerns the SSH session, then the request's variables.
func environmentFor(request *launchRequest, credential *syscall.Credential) map[string]string {
	environment := map[string]string{"PATH": defaultPath}
	for _, entry := range os.Environ() {
		name, value, _ := strings.Cut(entry, "=")
		switch {
		case strings.HasPrefix(name, "SSH_"), strings.HasPrefix(name, "SUDO_"), strings.HasPrefix(name, "XDG_SESSION_"):
		case name == "_", name == "SHLVL", name == "PWD", name == "OLDPWD", name == "MAIL", name == "TERM", name == "":
		default:
			environment[name] = value
		}
	}
	if credential != nil {
		environment["HOME"] = "/"
		delete(environment, "USER")
		delete(environment, "LOGNAME")
		if account, err := user.LookupId(strconv.FormatUint(uint64(credential.Uid), 10)); err == nil {
			environment["HOME"], environment["USER"], environment["LOGNAME"] = account.HomeDir, account.Username, account.Username
		}
	}
	if request.Terminal != nil {
		environment["TERM"] = "xterm"
	}
	for name, value := range request.Environment {
		environment[name] = value
	}
	return environment
}

func flatten(environment map[string]string) []string {
	entries := make([]string, 0, len(environment))
	for name, value := range environment {
		entries = append(entries, name+"="+value)
	}
	return entries
}

func prepareDirectory(request *launchRequest, credential *syscall.Credential) error {
	if request.WorkingDirectory == "" {
		home, err := os.UserHomeDir()
		if credential != nil {
			home, err = "/", nil
		}
		if information, statError := os.Stat(home); err != nil || statError != nil || !information.IsDir() {
			home = "/"
		}
		request.WorkingDirectory = home
		return nil
	}
	information, err := os.Stat(request.WorkingDirectory)
	if errors.Is(err, fs.ErrNotExist) && request.CreateDirectory {
		if err := os.MkdirAll(request.WorkingDirectory, 0o755); err != nil {
			return fmt.Errorf("the working directory %q cannot be made: %w", request.WorkingDirectory, err)
		}
		if credential != nil {
			os.Chown(request.WorkingDirectory, int(credential.Uid), int(credential.Gid))
		}
		return nil
	}
	if err == nil && !information.IsDir() {
		err = errors.New("not a directory")
	}
	if err != nil {
		return fmt.Errorf("the working directory %q cannot be used: %w", request.WorkingDirectory, err)
	}
	return nil
}

// `daemon`: owns the main process. It belongs to no terminal, session or connection; only the end of the process ends it.
package main

import (
	"encoding/json"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"
)

const maximumTerminationMessage = 4096

type daemon struct {
	request            runRequest
	record             mainRecord
	process            *launched
	input              *inputQueue
	log                *logWriter
	terminationMessage terminationNote

	mutex   sync.Mutex
	clients map[*client]bool
	ended   bool
	// currentLine is what a terminal shows since its last line end: a client that attaches finds the prompt.
	currentLine []byte
}

func runDaemon() int {
	lock, header, report := os.NewFile(3, "lock"), os.NewFile(4, "header"), os.NewFile(5, "report")
	for _, file := range []*os.File{lock, header, report} {
		syscall.CloseOnExec(int(file.Fd()))
	}
	syscall.Umask(0o022)
	leaveLoginSession()
	control := &frameWriter{writer: report}
	d := &daemon{input: newInputQueue(), clients: map[*client]bool{}}
	listener, err := d.start(header)
	if err != nil {
		return fail(control, err)
	}
	control.sendJSON(frameAnswer, nil)
	report.Close()
	d.serveUntilExit(listener)
	// The lock is released by the end of this process, after everything else.
	return 0
}

func (d *daemon) start(headerPipe *os.File) (net.Listener, error) {
	header, err := readHeader(newFrameReader(headerPipe))
	headerPipe.Close()
	if err != nil {
		return nil, err
	}
	if err := json.Unmarshal(header, &d.request); err != nil {
		return nil, err
	}
	for _, name := range []string{"record.json", "output", "exit.json", "socket"} {
		if err := os.Remove(mainPath(name)); err != nil && !errors.Is(err, os.ErrNotExist) {
			return nil, err
		}
	}
	output, err := os.OpenFile(mainPath("output"), os.O_CREATE|os.O_EXCL|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, failf("Internal", "the output file cannot be made: %v", err)
	}
	handOver(mainPath("output"))
	listener, err := listenMain()
	if err != nil {
		return nil, failf("Internal", "the attach socket cannot be made: %v", err)
	}
	message := noteTerminationMessage(d.request.TerminationMessagePath)
	d.record = mainRecord{Attempt: d.request.Attempt, Boot: bootIdentifier(), StartedAt: time.Now(), Terminal: d.request.Terminal != nil}
	if err := writeJSON(mainPath("record.json"), d.record); err != nil {
		return nil, err
	}
	d.process, err = launch(&d.request.launchRequest)
	if err != nil {
		return nil, d.refuse(err)
	}
	d.terminationMessage = message
	d.record.StartedAt, d.record.ProcessID = time.Now(), d.process.process.Pid
	if err := writeJSON(mainPath("record.json"), d.record); err != nil {
		d.process.signal(syscall.SIGKILL)
		return nil, err
	}
	d.log = newLogWriter(output, d.notifyGrowth)
	return listener, nil
}

// refuse writes down that this attempt can never run, so that asking again gives the same answer.
func (d *daemon) refuse(err error) error {
	var refusal *launchError
	if !errors.As(err, &refusal) {
		refusal = &launchError{126, err.Error()}
	}
	d.record.Failure = failf("InvalidArgument", "the main process cannot run %s (exit code %d)", refusal.message, refusal.exitCode)
	d.record.Exit = &processExit{ExitCode: refusal.exitCode}
	if err := writeJSON(mainPath("record.json"), d.record); err != nil {
		return err
	}
	return d.record.Failure
}

func listenMain() (net.Listener, error) {
	// A path above about 100 bytes fits no socket address; the directory as working directory makes it short.
	if err := os.Chdir(mainPath("")); err != nil {
		return nil, err
	}
	mask := syscall.Umask(0o177)
	listener, err := net.Listen("unix", "socket")
	syscall.Umask(mask)
	if err == nil {
		handOver(mainPath("socket"))
	}
	return listener, err
}

func (d *daemon) serveUntilExit(listener net.Listener) {
	go d.input.feed(d.inputTarget(), d.process.endOfInput)
	go func() {
		for {
			connection, err := listener.Accept()
			if err != nil {
				return
			}
			go d.serve(connection)
		}
	}()
	var out outputs
	out.copy(d.process.stdout, func(data []byte) error { return d.publish("stdout", frameOutput, data) })
	out.copy(d.process.stderr, func(data []byte) error { return d.publish("stderr", frameError, data) })
	state, err := d.process.process.Wait()
	finishedAt := time.Now()
	out.drain()
	d.log.flush("stdout", "stderr")

	exit := exitRecord{processExit: processExit{ExitCode: 255}, Attempt: d.record.Attempt, FinishedAt: finishedAt}
	if err == nil {
		exit.processExit = exitOf(state)
	}
	exit.TerminationMessage = d.terminationMessage.read()
	for writeJSON(mainPath("exit.json"), exit) != nil {
		time.Sleep(time.Second)
	}
	listener.Close()
	d.dismissClients(exit.processExit)
}

func (d *daemon) inputTarget() io.Writer {
	if d.process.stdin == nil {
		return nil
	}
	return d.process.stdin
}

func (d *daemon) publish(stream string, kind byte, data []byte) error {
	d.log.write(stream, data)
	d.mutex.Lock()
	defer d.mutex.Unlock()
	if d.request.Terminal != nil {
		d.currentLine = currentLine(d.currentLine, data)
	}
	for client := range d.clients {
		if client.wants(kind) && !client.queue(kind, data) {
			client.connection.Close()
		}
	}
	return nil
}

func currentLine(line, data []byte) []byte {
	line = append(line, data...)
	for index := len(line) - 1; index >= 0; index-- {
		if line[index] == '\n' {
			line = append(line[:0], line[index+1:]...)
			break
		}
	}
	if excess := len(line) - 4096; excess > 0 {
		line = append(line[:0], line[excess:]...)
	}
	return line
}

// terminationNote remembers what lay at the path before, so that a file of the image is not taken for a message.
type terminationNote struct {
	path string
	size int64
	time time.Time
}

func noteTerminationMessage(path string) terminationNote {
	note := terminationNote{path: path}
	if path == "" {
		return note
	}
	// As the kubelet prepares it: present, and writable for whatever user the process has.
	if file, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY|syscall.O_NOFOLLOW, 0o666); err == nil {
		file.Chmod(0o666)
		file.Close()
	}
	if information, err := os.Stat(path); err == nil {
		note.size, note.time = information.Size(), information.ModTime()
	}
	return note
}

func (n terminationNote) read() string {
	if n.path == "" {
		return ""
	}
	// Not blocking: the process may have put a pipe there.
	file, err := os.OpenFile(n.path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return ""
	}
	defer file.Close()
	information, err := file.Stat()
	if err != nil || !information.Mode().IsRegular() || (information.Size() == n.size && information.ModTime().Equal(n.time)) {
		return ""
	}
	text := make([]byte, maximumTerminationMessage)
	size, err := io.ReadFull(file, text)
	if err != nil && err != io.ErrUnexpectedEOF {
		return ""
	}
	return strings.ToValidUTF8(string(text[:size]), "\uFFFD")
}

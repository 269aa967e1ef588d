// The other side of the daemon's socket, one process per SSH channel: attach, follow the output file, wait, signal, resize.
package main

import (
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"net"
	"os"
	"syscall"
	"time"
)

func dialMain(request *clientRequest) (net.Conn, error) {
	if err := os.Chdir(mainPath("")); err != nil {
		return nil, failf("Conflict", "no main process was started in this guest")
	}
	connection, err := net.Dial("unix", "socket")
	if err != nil {
		return nil, failf("Conflict", "the main process does not run")
	}
	return connection, (&frameWriter{writer: connection}).sendJSON(frameHeader, request)
}

func runAttach() int {
	control := newControl()
	os.Stdout.WriteString(preamble)
	frames := newFrameReader(os.Stdin)
	header, err := readHeader(frames)
	if err != nil {
		return fail(control, err)
	}
	var request clientRequest
	if err := json.Unmarshal(header, &request); err != nil {
		return fail(control, err)
	}
	request.Mode = "attach"
	connection, err := dialMain(&request)
	if err != nil {
		return fail(control, err)
	}
	go func() {
		// Client gone or connection broken: either way this process has nothing left to do.
		io.Copy(connection, frames)
		connection.Close()
	}()
	incoming := newFrameReader(connection)
	for {
		kind, payload, err := readFrame(incoming)
		if err != nil {
			return fail(control, failf("Unavailable", "the attached client was let go"))
		}
		switch kind {
		case frameOutput:
			if _, err := os.Stdout.Write(payload); err != nil {
				return 1
			}
		case frameExit:
			control.send(kind, payload)
			return 0
		default:
			if control.send(kind, payload) != nil {
				return 1
			}
		}
	}
}

func controlMain(command string, header []byte) error {
	var request clientRequest
	if err := json.Unmarshal(header, &request); err != nil {
		return err
	}
	request.Mode = command
	connection, err := dialMain(&request)
	if err != nil {
		return err
	}
	defer connection.Close()
	kind, payload, err := readFrame(newFrameReader(connection))
	if err != nil {
		return failf("Conflict", "the main process ended")
	}
	if kind == frameFailure {
		var reason failure
		if err := json.Unmarshal(payload, &reason); err != nil {
			return err
		}
		return &reason
	}
	return nil
}

// growth blocks until the daemon has written more, or is gone. It may report growth that was seen already.
type growth struct {
	incoming func() error
	close    func()
}

func followMain() (*growth, error) {
	connection, err := dialMain(&clientRequest{Mode: "follow"})
	if err != nil {
		return nil, err
	}
	reader := newFrameReader(connection)
	return &growth{func() error { _, _, err := readFrame(reader); return err }, func() { connection.Close() }}, nil
}

func waitForExit() (*stateAnswer, error) {
	go func() {
		// The client going away is all that can still come on stdin.
		io.Copy(io.Discard, os.Stdin)
		os.Exit(1)
	}()
	for {
		answer, err := mainState()
		if err != nil || answer.State == "exited" {
			return answer, err
		}
		if answer.State == "absent" {
			return nil, failf("Conflict", "no main process was started in this guest")
		}
		if follower, err := followMain(); err == nil {
			for follower.incoming() == nil {
			}
			follower.close()
		}
		if _, exit, err := readMain(); err == nil && exit == nil {
			awaitDaemon()
		}
	}
}

// awaitDaemon returns when the daemon has ended: its lock is free then.
func awaitDaemon() {
	lock, err := os.OpenFile(mainPath("lock"), os.O_RDWR, 0)
	if err != nil {
		return
	}
	defer lock.Close()
	for errors.Is(syscall.Flock(int(lock.Fd()), syscall.LOCK_SH), syscall.EINTR) {
	}
}

type logsRequest struct {
	Offset int64 `json:"offset"`
	Follow bool  `json:"follow"`
}

func runLogs() int {
	control := newControl()
	os.Stdout.WriteString(preamble)
	frames := newFrameReader(os.Stdin)
	header, err := readHeader(frames)
	if err != nil {
		return fail(control, err)
	}
	go func() {
		io.Copy(io.Discard, frames)
		os.Exit(1)
	}()
	var request logsRequest
	if err := json.Unmarshal(header, &request); err != nil {
		return fail(control, err)
	}
	file, err := os.Open(mainPath("output"))
	if errors.Is(err, fs.ErrNotExist) {
		return fail(control, failf("Conflict", "no main process was started in this guest"))
	} else if err != nil {
		return fail(control, err)
	}
	if size, err := file.Seek(0, io.SeekEnd); err != nil || request.Offset > size {
		return fail(control, failf("Corrupt", "the host's copy of the output has %d bytes, the guest's file only %d", request.Offset, size))
	}
	file.Seek(request.Offset, io.SeekStart)
	if err := streamLog(file, request.Follow); err != nil {
		return fail(control, err)
	}
	control.sendJSON(frameAnswer, nil)
	return 0
}

// streamLog ends at the end of the file once the exit was on record before that end was reached.
func streamLog(file *os.File, follow bool) error {
	var follower *growth
	for {
		_, exit, err := readMain()
		if err != nil {
			return err
		}
		if err := copyToEnd(file); err != nil || exit != nil || !follow {
			return err
		}
		if follower, err = followMain(); err != nil {
			awaitDaemon()
			continue
		}
		// The first report comes at once, so that nothing written before it is missed.
		for follower.incoming() == nil {
			if err := copyToEnd(file); err != nil {
				return err
			}
			// A process that writes line by line shall not cost a round per line.
			time.Sleep(5 * time.Millisecond)
		}
		follower.close()
	}
}

func copyToEnd(file *os.File) error {
	buffer := make([]byte, 64*1024)
	for {
		size, err := file.Read(buffer)
		if size > 0 {
			if _, err := os.Stdout.Write(buffer[:size]); err != nil {
				return err
			}
		}
		if err == io.EOF {
			return nil
		} else if err != nil {
			return err
		}
	}
}

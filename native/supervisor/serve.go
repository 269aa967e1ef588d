// `serve`: takes execs on a socket, one per connection, as long as the SSH session that started it lives. The host reaches
// the socket through SSH's own forwarding (direct-streamlocal), which spares every exec a session process of sshd, the
// login shell and the start of this program. All on one stream, so stdout is framed here too.
package main

import (
	"io"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"sync"
	"syscall"
	"time"
)

var socketName = regexp.MustCompile(`^serve-[0-9a-f]{1,32}$`)

type launchJob struct {
	request *launchRequest
	result  chan<- launchResult
}

type launchResult struct {
	process *launched
	err     error
}

func runServe(arguments []string) int {
	control := newControl()
	if len(arguments) != 1 || !socketName.MatchString(arguments[0]) {
		return fail(control, failf("InvalidArgument", "serve takes the name of a socket"))
	}
	removeStaleSockets()
	path := filepath.Join(baseDirectory(), arguments[0])
	mask := syscall.Umask(0o177)
	listener, err := net.Listen("unix", path)
	syscall.Umask(mask)
	if err != nil {
		return fail(control, failf("Unsupported", "the exec socket cannot be made: %v", err))
	}
	syscall.Umask(0o022)
	jobs := make(chan launchJob)
	stop := make(chan struct{})
	var serving sync.WaitGroup
	go acceptExecs(listener, jobs, stop, &serving)
	go func() {
		// The session's end is the host's end: nothing started for it may stay.
		io.Copy(io.Discard, os.Stdin)
		close(stop)
		listener.Close()
	}()
	control.sendJSON(frameAnswer, nil)
	for {
		select {
		case job := <-jobs:
			// Here, on the main thread: see dieWithParent.
			process, err := launch(job.request)
			job.result <- launchResult{process, err}
		case <-stop:
			ended := make(chan struct{})
			go func() {
				serving.Wait()
				close(ended)
			}()
			select {
			case <-ended:
			case <-time.After(5 * time.Second):
			}
			return 0
		}
	}
}

func acceptExecs(listener net.Listener, jobs chan<- launchJob, stop <-chan struct{}, serving *sync.WaitGroup) {
	for {
		connection, err := listener.Accept()
		if err != nil {
			return
		}
		serving.Add(1)
		go func() {
			defer serving.Done()
			ended := make(chan struct{})
			defer close(ended)
			go func() {
				select {
				case <-stop:
				case <-ended:
				}
				connection.Close()
			}()
			serveExec(connection, jobs, stop)
		}()
	}
}

func serveExec(connection net.Conn, jobs chan<- launchJob, stop <-chan struct{}) {
	if _, err := connection.Write([]byte(preamble)); err != nil {
		return
	}
	control := &frameWriter{writer: connection}
	peer := &execPeer{
		frames:  newFrameReader(connection),
		control: control,
		stdout:  func(data []byte) error { return control.send(frameOutput, data) },
		launch: func(request *launchRequest) (*launched, error) {
			result := make(chan launchResult, 1)
			select {
			case jobs <- launchJob{request, result}:
				launched := <-result
				return launched.process, launched.err
			case <-stop:
				return nil, failf("Unavailable", "the connection ended")
			}
		},
	}
	peer.run()
}

// removeStaleSockets clears what a power cut left behind.
func removeStaleSockets() {
	paths, _ := filepath.Glob(filepath.Join(baseDirectory(), "serve-*"))
	for _, path := range paths {
		if connection, err := net.Dial("unix", path); err == nil {
			connection.Close()
		} else {
			os.Remove(path)
		}
	}
}

// `exec`: one process per SSH channel, for as long as the channel lives. Without a terminal stdout is the channel's
// stdout as it is; stderr, credits and the exit are frames on the channel's stderr.
package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"os"
	"runtime"
	"syscall"
	"time"
)

func init() {
	// Processes are started by the main goroutine; see dieWithParent.
	runtime.LockOSThread()
}

// execPeer is the client of one exec, behind an SSH session's three streams or behind a socket (serve.go).
type execPeer struct {
	frames  *bufio.Reader
	control *frameWriter
	stdout  func(data []byte) error
	launch  func(request *launchRequest) (*launched, error)
}

func runExec() int {
	control := newControl()
	os.Stdout.WriteString(preamble)
	peer := &execPeer{
		frames:  newFrameReader(os.Stdin),
		control: control,
		stdout: func(data []byte) error {
			_, err := os.Stdout.Write(data)
			return err
		},
		launch: launch,
	}
	return peer.run()
}

// run gives the exit code as a shell would.
func (p *execPeer) run() int {
	header, err := readHeader(p.frames)
	if err != nil {
		return fail(p.control, err)
	}
	var request launchRequest
	if err := json.Unmarshal(header, &request); err != nil {
		return fail(p.control, failf("InvalidArgument", "the exec header cannot be read: %v", err))
	}
	process, err := p.launch(&request)
	if err != nil {
		return p.refuse(&request, err)
	}

	input := newInputQueue()
	go input.feed(process.stdin, process.endOfInput)
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		p.listen(process, input)
	}()
	var out outputs
	out.copy(process.stdout, p.stdout)
	out.copy(process.stderr, func(data []byte) error { return p.control.send(frameError, data) })

	ended := make(chan *os.ProcessState, 1)
	go func() {
		if state, err := process.process.Wait(); err == nil {
			ended <- state
		}
		close(ended)
	}()
	defer func() {
		input.end()
		process.close()
	}()
	select {
	case state := <-ended:
		return p.finish(&out, gone, state)
	case <-gone:
		endProcessGroup(process, ended)
		return 255
	}
}

// listen takes frames until the client is gone.
func (p *execPeer) listen(process *launched, input *inputQueue) {
	credit := creditor(func(size int) { p.control.sendCredit(size) })
	for {
		kind, payload, err := readFrame(p.frames)
		if err != nil {
			return
		}
		switch kind {
		case frameInput:
			input.push(inputChunk{payload, credit})
		case frameEnd:
			input.end()
		case frameResize:
			if columns, rows, ok := decodeResize(payload); ok && process.terminal != nil {
				resizeTerminal(process.terminal, columns, rows)
			}
		case frameSignal:
			if len(payload) == 1 {
				process.signal(syscall.Signal(payload[0]))
			}
		}
	}
}

func (p *execPeer) finish(out *outputs, gone <-chan struct{}, state *os.ProcessState) int {
	exit := processExit{ExitCode: 255}
	if state != nil {
		exit = exitOf(state)
	}
	drained := make(chan struct{})
	go func() {
		out.drain()
		close(drained)
	}()
	select {
	case <-drained:
	case <-gone:
	}
	p.control.sendJSON(frameExit, exit)
	return exit.ExitCode
}

// endProcessGroup asks politely first; the client is gone, so nobody waits for the answer.
func endProcessGroup(process *launched, ended <-chan *os.ProcessState) {
	process.signal(syscall.SIGHUP)
	process.signal(syscall.SIGTERM)
	select {
	case <-ended:
	case <-time.After(2 * time.Second):
	}
	process.signal(syscall.SIGKILL)
}

// refuse answers as a shell would: the sentence on the process's error output and 126 or 127.
func (p *execPeer) refuse(request *launchRequest, err error) int {
	var refusal *launchError
	if !errors.As(err, &refusal) {
		return fail(p.control, err)
	}
	sentence := "podyard: cannot run " + refusal.message
	if request.Terminal != nil {
		p.stdout([]byte(sentence + "\r\n"))
	} else {
		p.control.send(frameError, []byte(sentence+"\n"))
	}
	p.control.sendJSON(frameExit, processExit{ExitCode: refusal.exitCode})
	return refusal.exitCode
}

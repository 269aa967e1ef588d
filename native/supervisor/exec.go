// `exec`: one process per SSH channel, for as long as the channel lives. Without a terminal stdout is the channel's
// stdout as it is; stderr, credits and the exit are frames on the channel's stderr.
package main

import (
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

func runExec() int {
	control := newControl()
	os.Stdout.WriteString(preamble)
	frames := newFrameReader(os.Stdin)
	header, err := readHeader(frames)
	if err != nil {
		return fail(control, err)
	}
	var request launchRequest
	if err := json.Unmarshal(header, &request); err != nil {
		return fail(control, failf("InvalidArgument", "the exec header cannot be read: %v", err))
	}
	process, err := launch(&request)
	if err != nil {
		return refuseExec(control, &request, err)
	}

	input := newInputQueue()
	go input.feed(process.stdin, process.endOfInput)
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		credit := creditor(func(size int) { control.sendCredit(size) })
		for {
			kind, payload, err := readFrame(frames)
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
	}()

	var out outputs
	out.copy(process.stdout, func(data []byte) error {
		_, err := os.Stdout.Write(data)
		return err
	})
	out.copy(process.stderr, func(data []byte) error { return control.send(frameError, data) })

	ended := make(chan *os.ProcessState, 1)
	go func() {
		state, err := process.process.Wait()
		if err == nil {
			ended <- state
		}
		close(ended)
	}()
	select {
	case state := <-ended:
		return finishExec(control, process, &out, gone, state)
	case <-gone:
		endProcessGroup(process, ended)
		return 255
	}
}

func finishExec(control *frameWriter, process *launched, out *outputs, gone <-chan struct{}, state *os.ProcessState) int {
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
	control.sendJSON(frameExit, exit)
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

// refuseExec answers as a shell would: the sentence on the process's error output and 126 or 127.
func refuseExec(control *frameWriter, request *launchRequest, err error) int {
	var refusal *launchError
	if !errors.As(err, &refusal) {
		return fail(control, err)
	}
	sentence := "podyard: cannot run " + refusal.message
	if request.Terminal != nil {
		os.Stdout.WriteString(sentence + "\r\n")
	} else {
		control.send(frameError, []byte(sentence+"\n"))
	}
	control.sendJSON(frameExit, processExit{ExitCode: refusal.exitCode})
	return refusal.exitCode
}

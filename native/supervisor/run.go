// `run`: starts the main process under a daemon of its own, once per attempt however often it is asked, and returns when
// the process was spawned. The lock taken here goes to the daemon as an open file, so there is no moment without owner.
package main

import (
	"encoding/json"
	"os"
	"syscall"
	"time"
)

type runRequest struct {
	launchRequest
	Attempt                string `json:"attempt"`
	StdinOnce              bool   `json:"stdinOnce"`
	TerminationMessagePath string `json:"terminationMessagePath"`
}

const startDeadline = 30 * time.Second

func runMain(header []byte) (any, error) {
	var request runRequest
	if err := json.Unmarshal(header, &request); err != nil || request.Attempt == "" {
		return nil, failf("InvalidArgument", "the run header cannot be read: %v", err)
	}
	deadline := time.Now().Add(startDeadline)
	for {
		record, exit, err := readMain()
		if err != nil {
			return nil, err
		}
		if record != nil && record.Attempt == request.Attempt {
			if record.Failure != nil {
				return nil, record.Failure
			}
			if record.ProcessID != 0 || exit != nil {
				return nil, nil
			}
		} else if record != nil && exit == nil && record.ProcessID != 0 {
			return nil, failf("Conflict", "attempt %q cannot start: the main process of attempt %q still runs", request.Attempt, record.Attempt)
		}
		lock, err := lockMain()
		if err != nil {
			return nil, err
		}
		if lock != nil {
			defer lock.Close()
			// Between the look at the record and the lock, a rival may have started and even ended this attempt.
			var latest mainRecord
			if readJSON(mainPath("record.json"), &latest) == nil && latest.Attempt == request.Attempt {
				lock.Close()
				continue
			}
			return nil, startDaemon(lock, header)
		}
		if time.Now().After(deadline) {
			return nil, failf("Timeout", "another start of the main process did not finish within %v", startDeadline)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// startDaemon hands over the lock and the header and waits until the daemon says that the process runs, or why not.
func startDaemon(lock *os.File, header []byte) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	headerReader, headerWriter, err := os.Pipe()
	if err != nil {
		return err
	}
	reportReader, reportWriter, err := os.Pipe()
	if err != nil {
		return err
	}
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	daemon, err := os.StartProcess(self, []string{self, "daemon"}, &os.ProcAttr{
		Dir:   "/",
		Env:   os.Environ(),
		Files: []*os.File{null, null, null, lock, headerReader, reportWriter},
		Sys:   &syscall.SysProcAttr{Setsid: true},
	})
	headerReader.Close()
	reportWriter.Close()
	if err != nil {
		return err
	}
	daemon.Release()
	(&frameWriter{writer: headerWriter}).send(frameHeader, header)
	headerWriter.Close()
	kind, payload, err := readFrame(newFrameReader(reportReader))
	if err != nil {
		return failf("Internal", "the supervisor's daemon ended before it could start the main process")
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

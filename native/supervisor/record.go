// The main process's files: lock (held as long as its daemon lives), record.json (which attempt, written before the
// process starts), output, exit.json (written under a temporary name, then renamed), socket. Whoever finds the lock free
// and no exit knows that the daemon was killed, and writes down that the process is lost.
package main

import (
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"
)

type mainRecord struct {
	Attempt   string       `json:"attempt"`
	Boot      string       `json:"boot"`
	StartedAt time.Time    `json:"startedAt"`
	ProcessID int          `json:"processId"`
	Terminal  bool         `json:"terminal"`
	Failure   *failure     `json:"failure,omitempty"`
	Exit      *processExit `json:"exit,omitempty"`
}

type exitRecord struct {
	processExit
	Attempt            string    `json:"attempt"`
	FinishedAt         time.Time `json:"finishedAt"`
	TerminationMessage string    `json:"terminationMessage,omitempty"`
}

type stateAnswer struct {
	State              string     `json:"state"`
	Attempt            string     `json:"attempt,omitempty"`
	ProcessID          int        `json:"processId,omitempty"`
	Terminal           bool       `json:"terminal"`
	StartedAt          *time.Time `json:"startedAt,omitempty"`
	FinishedAt         *time.Time `json:"finishedAt,omitempty"`
	ExitCode           int        `json:"exitCode"`
	Signal             int        `json:"signal,omitempty"`
	TerminationMessage string     `json:"terminationMessage,omitempty"`
}

func mainPath(name string) string { return filepath.Join(baseDirectory(), "main", name) }

func readJSON(path string, value any) error {
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	return json.Unmarshal(text, value)
}

func writeJSON(path string, value any) error {
	text, err := json.Marshal(value)
	if err != nil {
		return err
	}
	file, err := os.OpenFile(path+".new", os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = file.Write(text)
	err = errors.Join(err, file.Sync(), file.Close())
	if err != nil {
		return err
	}
	handOver(path + ".new")
	return os.Rename(path+".new", path)
}

// handOver gives a file that root made under `sudo` to the login user, whose directory it is in.
func handOver(path string) {
	if os.Geteuid() != 0 {
		return
	}
	if information, err := os.Stat(baseDirectory()); err == nil {
		if owner, ok := information.Sys().(*syscall.Stat_t); ok && owner.Uid != 0 {
			os.Lchown(path, int(owner.Uid), int(owner.Gid))
		}
	}
}

// lockMain gives nil without an error if a daemon holds the lock.
func lockMain() (*os.File, error) {
	if err := os.Mkdir(mainPath(""), 0o700); err == nil {
		handOver(mainPath(""))
	} else if !errors.Is(err, fs.ErrExist) {
		return nil, err
	}
	lock, err := os.OpenFile(mainPath("lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	handOver(mainPath("lock"))
	err = syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	if err == nil {
		return lock, nil
	}
	lock.Close()
	if errors.Is(err, syscall.EWOULDBLOCK) {
		return nil, nil
	}
	return nil, err
}

// readExit gives nil if the process of the record has no exit yet.
func readExit(record *mainRecord) (*exitRecord, error) {
	var exit exitRecord
	err := readJSON(mainPath("exit.json"), &exit)
	if errors.Is(err, fs.ErrNotExist) || (err == nil && exit.Attempt != record.Attempt) {
		return nil, nil
	}
	return &exit, err
}

// readMain gives the record, nil if nothing was ever started, and its exit if there is one. It settles what a killed
// daemon left open.
func readMain() (*mainRecord, *exitRecord, error) {
	var record mainRecord
	if err := readJSON(mainPath("record.json"), &record); errors.Is(err, fs.ErrNotExist) {
		return nil, nil, nil
	} else if err != nil {
		return nil, nil, failf("Corrupt", "the record of the main process cannot be read: %v", err)
	}
	exit, err := readExit(&record)
	if err != nil || exit != nil {
		return &record, exit, err
	}
	lock, err := lockMain()
	if err != nil || lock == nil {
		return &record, nil, err
	}
	defer lock.Close()
	// The daemon may have written its last word between the two looks.
	if err := readJSON(mainPath("record.json"), &record); err != nil {
		return nil, nil, err
	}
	if exit, err = readExit(&record); err != nil || exit != nil {
		return &record, exit, err
	}
	if record.Failure != nil {
		return &record, &exitRecord{processExit: *record.Exit, Attempt: record.Attempt, FinishedAt: record.StartedAt, TerminationMessage: record.Failure.Message}, nil
	}
	exit = &exitRecord{
		processExit:        processExit{ExitCode: 137, Signal: 9},
		Attempt:            record.Attempt,
		FinishedAt:         time.Now(),
		TerminationMessage: "the supervisor of the main process was killed, or the guest stopped",
	}
	return &record, exit, writeJSON(mainPath("exit.json"), exit)
}

func mainState() (*stateAnswer, error) {
	record, exit, err := readMain()
	if err != nil {
		return nil, err
	}
	if record == nil {
		return &stateAnswer{State: "absent"}, nil
	}
	answer := &stateAnswer{State: "running", Attempt: record.Attempt, ProcessID: record.ProcessID, Terminal: record.Terminal, StartedAt: &record.StartedAt}
	if exit != nil {
		answer.State, answer.FinishedAt, answer.ExitCode, answer.Signal = "exited", &exit.FinishedAt, exit.ExitCode, exit.Signal
		answer.TerminationMessage = exit.TerminationMessage
	} else if record.ProcessID == 0 {
		answer.State = "absent"
	}
	return answer, nil
}

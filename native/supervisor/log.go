// The main process's output file in the CRI log format, `<RFC3339Nano> stdout|stderr F|P <line>`, append-only: the host
// mirrors it by offset, so bytes once written never change.
// https://github.com/kubernetes/design-proposals-archive/blob/main/node/kubelet-cri-logging.md
package main

import (
	"bytes"
	"os"
	"sync"
	"time"
)

const (
	// Longer lines become parts, as container runtimes do it.
	maximumLine = 16 * 1024
	// A prompt has no line end; it shall appear all the same.
	promptDelay = 50 * time.Millisecond
)

type logWriter struct {
	mutex   sync.Mutex
	file    *os.File
	grown   func()
	pending map[string]*bytes.Buffer
	timers  map[string]*time.Timer
	batch   bytes.Buffer
}

func newLogWriter(file *os.File, grown func()) *logWriter {
	return &logWriter{file: file, grown: grown, pending: map[string]*bytes.Buffer{"stdout": {}, "stderr": {}}, timers: map[string]*time.Timer{}}
}

func (l *logWriter) write(stream string, data []byte) {
	l.mutex.Lock()
	defer l.mutex.Unlock()
	pending := l.pending[stream]
	now := time.Now()
	for len(data) > 0 {
		end := bytes.IndexByte(data, '\n')
		take := len(data)
		if end >= 0 {
			take = end
		}
		if room := maximumLine - pending.Len(); take > room {
			pending.Write(data[:room])
			data = data[room:]
			l.record(now, stream, "P", pending)
			continue
		}
		pending.Write(data[:take])
		data = data[take:]
		if end >= 0 {
			data = data[1:]
			l.record(now, stream, "F", pending)
		}
	}
	l.append()
	if pending.Len() > 0 {
		l.flushSoon(stream)
	}
}

// flush writes what has no line end yet as parts, so that the log's text stays byte for byte the process's.
func (l *logWriter) flush(streams ...string) {
	l.mutex.Lock()
	defer l.mutex.Unlock()
	for _, stream := range streams {
		if pending := l.pending[stream]; pending.Len() > 0 {
			l.record(time.Now(), stream, "P", pending)
		}
	}
	l.append()
}

func (l *logWriter) flushSoon(stream string) {
	if timer := l.timers[stream]; timer != nil {
		timer.Reset(promptDelay)
	} else {
		l.timers[stream] = time.AfterFunc(promptDelay, func() { l.flush(stream) })
	}
}

func (l *logWriter) record(now time.Time, stream, tag string, line *bytes.Buffer) {
	l.batch.WriteString(now.UTC().Format(time.RFC3339Nano))
	l.batch.WriteByte(' ')
	l.batch.WriteString(stream)
	l.batch.WriteByte(' ')
	l.batch.WriteString(tag)
	l.batch.WriteByte(' ')
	l.batch.Write(line.Bytes())
	l.batch.WriteByte('\n')
	line.Reset()
}

// append holds the process back while the disk is full rather than leave a torn record behind.
func (l *logWriter) append() {
	rest := l.batch.Bytes()
	for len(rest) > 0 {
		size, err := l.file.Write(rest)
		rest = rest[size:]
		if err != nil {
			time.Sleep(200 * time.Millisecond)
		}
	}
	if l.batch.Len() > 0 {
		l.batch.Reset()
		l.grown()
	}
}

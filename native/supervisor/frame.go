// Frames: one byte of kind, four bytes of length (big endian), the payload. Client to supervisor on stdin, supervisor to
// client on stderr; stdout is raw. A preamble goes before both outputs, so that whatever a login shell's start-up files
// print is told apart from what we say.
package main

import (
	"bufio"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
)

const preamble = "\x00podyard-supervisor-1\x00"

const (
	frameHeader = 'H' // JSON, the first frame of every client
	frameInput  = 'I' // stdin bytes
	frameEnd    = 'E' // end of stdin
	frameResize = 'R' // columns, rows as uint16
	frameSignal = 'K' // one byte

	frameOutput  = 'O' // stdout bytes (only on the attach socket)
	frameError   = 'S' // stderr bytes
	frameCredit  = 'C' // uint32: so many more bytes of stdin may be sent
	frameInfo    = 'N' // JSON: what one is attached to
	frameExit    = 'X' // JSON: exit code and signal
	frameFailure = 'F' // JSON: code, message, fix
	frameAnswer  = 'A' // JSON
)

// A client may have this many bytes of stdin on their way. It keeps a process that does not read its stdin from
// blocking the resize and signal frames behind the data. The client's constant must be the same.
const inputWindow = 2 * 1024 * 1024

const maximumFrame = 64 * 1024 * 1024

type failure struct {
	Code    string `json:"code"`
	Message string `json:"message"`
	Fix     string `json:"fix,omitempty"`
}

func (f *failure) Error() string { return f.Message }

func failf(code, format string, values ...any) *failure {
	return &failure{Code: code, Message: fmt.Sprintf(format, values...)}
}

type frameWriter struct {
	mutex  sync.Mutex
	writer io.Writer
}

// newControl announces the supervisor on stderr.
func newControl() *frameWriter {
	os.Stderr.WriteString(preamble)
	return &frameWriter{writer: os.Stderr}
}

func (f *frameWriter) send(kind byte, payload []byte) error {
	frame := make([]byte, 5+len(payload))
	frame[0] = kind
	binary.BigEndian.PutUint32(frame[1:], uint32(len(payload)))
	copy(frame[5:], payload)
	f.mutex.Lock()
	defer f.mutex.Unlock()
	_, err := f.writer.Write(frame)
	return err
}

func (f *frameWriter) sendJSON(kind byte, value any) error {
	payload, err := json.Marshal(value)
	if err != nil {
		return err
	}
	return f.send(kind, payload)
}

func (f *frameWriter) sendCredit(size int) error {
	return f.send(frameCredit, binary.BigEndian.AppendUint32(nil, uint32(size)))
}

func fail(control *frameWriter, err error) int {
	var known *failure
	if !errors.As(err, &known) {
		known = &failure{Code: "Internal", Message: err.Error()}
	}
	control.sendJSON(frameFailure, known)
	return 1
}

func newFrameReader(reader io.Reader) *bufio.Reader { return bufio.NewReaderSize(reader, 256*1024) }

// readFrame gives a payload that belongs to the caller.
func readFrame(reader *bufio.Reader) (byte, []byte, error) {
	var head [5]byte
	if _, err := io.ReadFull(reader, head[:]); err != nil {
		return 0, nil, err
	}
	size := binary.BigEndian.Uint32(head[1:])
	if size > maximumFrame {
		return 0, nil, failf("InvalidArgument", "a frame of %d bytes is longer than the %d allowed", size, maximumFrame)
	}
	payload := make([]byte, size)
	if _, err := io.ReadFull(reader, payload); err != nil {
		return 0, nil, err
	}
	return head[0], payload, nil
}

func readHeader(reader *bufio.Reader) ([]byte, error) {
	kind, payload, err := readFrame(reader)
	if err != nil {
		return nil, failf("Unavailable", "the header did not arrive: %v", err)
	}
	if kind != frameHeader {
		return nil, failf("InvalidArgument", "the first frame is %q, not a header", kind)
	}
	return payload, nil
}

func decodeResize(payload []byte) (columns, rows uint16, ok bool) {
	if len(payload) != 4 {
		return 0, 0, false
	}
	return binary.BigEndian.Uint16(payload), binary.BigEndian.Uint16(payload[2:]), true
}

// The daemon's side of its socket: attached clients, those that only wait for growth or the end, signals and resizes.
package main

import (
	"encoding/binary"
	"encoding/json"
	"net"
	"sync"
	"syscall"
	"time"
)

const (
	// What may lie between the process and a slow client before the process itself is held back …
	clientQueue = 1024 * 1024
	// … and for how long: then the client is let go, since a forgotten terminal must not stop a service.
	clientPatience = 10 * time.Second
	farewell       = 3 * time.Second
)

type clientRequest struct {
	Mode    string `json:"mode"` // attach | follow | signal | resize
	Stdin   bool   `json:"stdin"`
	Stdout  bool   `json:"stdout"`
	Stderr  bool   `json:"stderr"`
	Signal  int    `json:"signal"`
	Columns uint16 `json:"columns"`
	Rows    uint16 `json:"rows"`
}

type clientInfo struct {
	Terminal bool `json:"terminal"`
	Stdin    bool `json:"stdin"`
}

type client struct {
	request    clientRequest
	connection net.Conn
	control    *frameWriter

	mutex   sync.Mutex
	changed *sync.Cond
	frames  []queuedFrame
	size    int
	closing bool
	broken  bool
}

type queuedFrame struct {
	kind byte
	data []byte
}

func (c *client) wants(kind byte) bool {
	return c.request.Mode == "attach" && ((kind == frameOutput && c.request.Stdout) || (kind == frameError && c.request.Stderr))
}

// queue waits for room, within limits; false means that the client must go.
func (c *client) queue(kind byte, data []byte) bool {
	c.mutex.Lock()
	defer c.mutex.Unlock()
	if c.size > clientQueue {
		expired := false
		timer := time.AfterFunc(clientPatience, func() {
			c.mutex.Lock()
			expired = true
			c.mutex.Unlock()
			c.changed.Broadcast()
		})
		for c.size > clientQueue && !expired && !c.broken {
			c.changed.Wait()
		}
		timer.Stop()
		if c.size > clientQueue && !c.broken {
			c.broken = true
			return false
		}
	}
	c.enqueue(kind, data)
	return true
}

// post queues a small frame without ever waiting.
func (c *client) post(kind byte, data []byte) {
	c.mutex.Lock()
	defer c.mutex.Unlock()
	c.enqueue(kind, data)
}

func (c *client) enqueue(kind byte, data []byte) {
	if !c.broken {
		c.frames = append(c.frames, queuedFrame{kind, append([]byte(nil), data...)})
		c.size += len(data) + 64
		c.changed.Broadcast()
	}
}

// deliver sends what is queued until close() or an error.
func (c *client) deliver() {
	for {
		c.mutex.Lock()
		for len(c.frames) == 0 && !c.closing && !c.broken {
			c.changed.Wait()
		}
		frames := c.frames
		c.frames = nil
		done := len(frames) == 0 || c.broken
		c.mutex.Unlock()
		if done {
			return
		}
		for _, frame := range frames {
			err := c.control.send(frame.kind, frame.data)
			c.mutex.Lock()
			c.size -= len(frame.data) + 64
			c.broken = c.broken || err != nil
			c.mutex.Unlock()
			c.changed.Broadcast()
		}
	}
}

func (c *client) end(broken bool) {
	c.mutex.Lock()
	c.closing = true
	c.broken = c.broken || broken
	c.mutex.Unlock()
	c.changed.Broadcast()
}

func (d *daemon) serve(connection net.Conn) {
	defer connection.Close()
	frames := newFrameReader(connection)
	header, err := readHeader(frames)
	if err != nil {
		return
	}
	c := &client{connection: connection, control: &frameWriter{writer: connection}}
	c.changed = sync.NewCond(&c.mutex)
	if json.Unmarshal(header, &c.request) != nil {
		return
	}
	switch c.request.Mode {
	case "signal":
		if err := d.process.signal(syscall.Signal(c.request.Signal)); err != nil && err != syscall.ESRCH {
			fail(c.control, failf("InvalidArgument", "signal %d could not be sent: %v", c.request.Signal, err))
			return
		}
		c.control.sendJSON(frameAnswer, nil)
		return
	case "resize":
		if d.process.terminal != nil {
			resizeTerminal(d.process.terminal, c.request.Columns, c.request.Rows)
		}
		c.control.sendJSON(frameAnswer, nil)
		return
	}

	d.mutex.Lock()
	if d.ended {
		// Accepted in the last moment: the record has the rest.
		d.mutex.Unlock()
		return
	}
	d.clients[c] = true
	if c.request.Mode == "attach" {
		info, _ := json.Marshal(clientInfo{Terminal: d.request.Terminal != nil, Stdin: d.request.Stdin})
		c.post(frameInfo, info)
		if c.request.Stdout && len(d.currentLine) > 0 {
			c.post(frameOutput, d.currentLine)
		}
	} else {
		c.post(frameCredit, nil)
	}
	d.mutex.Unlock()
	delivered := make(chan struct{})
	go func() {
		c.deliver()
		close(delivered)
		connection.Close()
	}()
	d.listen(c, func() (byte, []byte, error) { return readFrame(frames) })
	c.end(true)
	d.mutex.Lock()
	delete(d.clients, c)
	d.mutex.Unlock()
	<-delivered
}

// listen takes a client's frames until it goes. With stdinOnce, the first client that gave input and goes ends the input.
func (d *daemon) listen(c *client, next func() (byte, []byte, error)) {
	credit := creditor(func(size int) { c.post(frameCredit, binary.BigEndian.AppendUint32(nil, uint32(size))) })
	takesInput := c.request.Mode == "attach" && c.request.Stdin
	for {
		kind, payload, err := next()
		if err != nil {
			break
		}
		switch kind {
		case frameInput:
			if takesInput && d.request.Stdin {
				d.input.push(inputChunk{payload, credit})
			} else {
				credit(len(payload))
			}
		case frameEnd:
			if takesInput && d.request.StdinOnce {
				d.input.end()
			}
		case frameResize:
			if columns, rows, ok := decodeResize(payload); ok && d.process.terminal != nil {
				resizeTerminal(d.process.terminal, columns, rows)
			}
		case frameSignal:
			if len(payload) == 1 {
				d.process.signal(syscall.Signal(payload[0]))
			}
		}
	}
	if takesInput && d.request.StdinOnce {
		d.input.end()
	}
}

func (d *daemon) notifyGrowth() {
	d.mutex.Lock()
	defer d.mutex.Unlock()
	for c := range d.clients {
		if c.request.Mode != "follow" {
			continue
		}
		c.mutex.Lock()
		idle := len(c.frames) == 0
		c.mutex.Unlock()
		if idle {
			c.post(frameCredit, nil)
		}
	}
}

func (d *daemon) dismissClients(exit processExit) {
	payload, _ := json.Marshal(exit)
	d.mutex.Lock()
	d.ended = true
	for c := range d.clients {
		if c.request.Mode == "attach" {
			c.post(frameExit, payload)
		}
		c.end(false)
	}
	d.mutex.Unlock()
	for deadline := time.Now().Add(farewell); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		d.mutex.Lock()
		left := len(d.clients)
		d.mutex.Unlock()
		if left == 0 {
			return
		}
	}
}

// Moving bytes: stdin on its way to a process (with credits, so that nobody blocks the frames behind it), and a process's
// output on its way out, until the process is gone and nothing more comes.
package main

import (
	"io"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

const creditStep = inputWindow / 8

type inputChunk struct {
	data []byte
	// done tells the sender that these bytes were taken.
	done func(size int)
}

// inputQueue decouples reading frames from writing to a process that may not read. Its size is bounded by what senders
// may have on their way.
type inputQueue struct {
	mutex  sync.Mutex
	filled *sync.Cond
	chunks []inputChunk
	ended  bool
}

func newInputQueue() *inputQueue {
	queue := &inputQueue{}
	queue.filled = sync.NewCond(&queue.mutex)
	return queue
}

func (q *inputQueue) push(chunk inputChunk) {
	q.mutex.Lock()
	q.chunks = append(q.chunks, chunk)
	q.mutex.Unlock()
	q.filled.Signal()
}

func (q *inputQueue) end() {
	q.mutex.Lock()
	q.ended = true
	q.mutex.Unlock()
	q.filled.Signal()
}

// feed writes what arrives to the process until end() and then calls finish. A process that closed its stdin loses the
// rest, as in a pipe of a shell, but its client is still told that the bytes went.
func (q *inputQueue) feed(target io.Writer, finish func()) {
	broken := target == nil
	for {
		q.mutex.Lock()
		for len(q.chunks) == 0 && !q.ended {
			q.filled.Wait()
		}
		chunks := q.chunks
		q.chunks = nil
		q.mutex.Unlock()
		if len(chunks) == 0 {
			finish()
			return
		}
		for _, chunk := range chunks {
			if !broken {
				_, err := target.Write(chunk.data)
				broken = err != nil
			}
			chunk.done(len(chunk.data))
		}
	}
}

// creditor gathers the sizes of taken bytes into few credit frames.
func creditor(send func(size int)) func(size int) {
	pending := 0
	return func(size int) {
		pending += size
		if pending >= creditStep {
			send(pending)
			pending = 0
		}
	}
}

// outputs copies a process's streams out and knows when they are quiet.
type outputs struct {
	copying  sync.WaitGroup
	writing  atomic.Int32
	lastRead atomic.Int64
}

func (o *outputs) copy(source *os.File, write func(data []byte) error) {
	if source == nil {
		return
	}
	o.copying.Add(1)
	go func() {
		defer o.copying.Done()
		buffer := make([]byte, 256*1024)
		broken := false
		for {
			size, err := source.Read(buffer)
			if size > 0 {
				o.lastRead.Store(time.Now().UnixNano())
				if !broken {
					o.writing.Add(1)
					broken = write(buffer[:size]) != nil
					o.writing.Add(-1)
				}
			}
			if err != nil {
				return
			}
		}
	}()
}

// drain waits, after the process's end, for its output to end. Processes it left in the background may keep the pipes
// open for ever; then the output counts as ended when none came for a while.
func (o *outputs) drain() {
	const quiet = 250 * time.Millisecond
	ended := make(chan struct{})
	go func() {
		o.copying.Wait()
		close(ended)
	}()
	start := time.Now()
	for {
		select {
		case <-ended:
			return
		case <-time.After(quiet / 5):
			last := time.Unix(0, o.lastRead.Load())
			if o.writing.Load() == 0 && time.Since(last) > quiet && time.Since(start) > quiet {
				return
			}
		}
	}
}

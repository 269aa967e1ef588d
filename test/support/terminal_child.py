"""Runs a command under a pseudo terminal for tests. stdin takes JSON lines {"write": base64} and {"resize": [rows, columns]};
stdout is the terminal's raw output; the exit code is the command's. Dies with its parent."""
import base64, ctypes, fcntl, json, os, pty, select, signal, struct, sys, termios

ctypes.CDLL(None).prctl(1, signal.SIGKILL)
rows, columns = int(sys.argv[1]), int(sys.argv[2])
child, terminal = pty.fork()
if child == 0:
    os.execvp(sys.argv[3], sys.argv[3:])
size = lambda r, c: fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", r, c, 0, 0))
size(rows, columns)
pending = b""
inputs = [terminal, 0]
while True:
    ready, _, _ = select.select(inputs, [], [])
    if terminal in ready:
        try:
            data = os.read(terminal, 65536)
        except OSError:
            data = b""
        if not data:
            break
        os.write(1, data)
    if 0 in ready:
        data = os.read(0, 65536)
        if not data:
            inputs.remove(0)
        pending += data
        *lines, pending = pending.split(b"\n")
        for line in lines:
            message = json.loads(line)
            if "write" in message:
                os.write(terminal, base64.b64decode(message["write"]))
            if "resize" in message:
                size(*message["resize"])
                os.kill(child, signal.SIGWINCH)
_, status = os.waitpid(child, 0)
sys.exit(os.waitstatus_to_exitcode(status) & 255)

module podyard.dev/supervisor

go 1.24

require (
	github.com/creack/pty v1.1.24
	golang.org/x/sys v0.30.0
)

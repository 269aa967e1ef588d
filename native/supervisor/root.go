// What needs root: becoming it, the guest's names, power-off. Volumes are in volumes_*.go.
package main

import (
	"encoding/json"
	"net"
	"os"
	"os/exec"
	"os/user"
	"regexp"
	"strings"
	"syscall"
)

// elevate turns this process into itself under sudo; stdin and the outputs stay. It returns only with an error.
func elevate() error {
	name := "the login user"
	if account, err := user.Current(); err == nil {
		name = account.Username
	}
	refusal := &failure{
		Code:    "MissingPrerequisite",
		Message: "volumes, host names, other users and power-off need root in the guest, and " + name + " may not use sudo without a password",
		Fix:     "In the image, run: echo '" + name + " ALL=(ALL) NOPASSWD: ALL' > /etc/sudoers.d/podyard; or log in as root",
	}
	sudo, err := exec.LookPath("sudo")
	if err != nil {
		return refusal
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	if exec.Command(sudo, "-n", "true").Run() != nil {
		return refusal
	}
	return syscall.Exec(sudo, append([]string{"sudo", "-n", "--", self}, os.Args[1:]...), os.Environ())
}

type configuration struct {
	Hostname string `json:"hostname"`
	Hosts    []struct {
		IP    string   `json:"ip"`
		Names []string `json:"names"`
	} `json:"hosts"`
}

const (
	hostsPath  = "/etc/hosts"
	hostsBegin = "# Podyard: begin (rewritten at every start)"
	hostsEnd   = "# Podyard: end"
)

var hostName = regexp.MustCompile(`^[A-Za-z0-9_]([A-Za-z0-9_.-]{0,251}[A-Za-z0-9_])?$`)

func configure(header []byte) (any, error) {
	var wanted configuration
	if err := json.Unmarshal(header, &wanted); err != nil {
		return nil, failf("InvalidArgument", "the configuration cannot be read: %v", err)
	}
	block := []string{hostsBegin}
	for _, host := range wanted.Hosts {
		if net.ParseIP(host.IP) == nil {
			return nil, failf("InvalidArgument", "%q is not an IP address", host.IP)
		}
		for _, name := range host.Names {
			if !hostName.MatchString(name) {
				return nil, failf("InvalidArgument", "%q is not a host name", name)
			}
		}
		block = append(block, host.IP+"\t"+strings.Join(host.Names, " "))
	}
	if wanted.Hostname != "" {
		if !hostName.MatchString(wanted.Hostname) {
			return nil, failf("InvalidArgument", "%q is not a host name", wanted.Hostname)
		}
		if err := setHostname(wanted.Hostname); err != nil {
			return nil, failf("Internal", "the host name could not be set to %q: %v", wanted.Hostname, err)
		}
	}
	text, err := os.ReadFile(hostsPath)
	if err != nil && !os.IsNotExist(err) {
		return nil, err
	}
	return nil, replaceFile(hostsPath, []byte(withHostsBlock(string(text), append(block, hostsEnd))))
}

// withHostsBlock puts our lines where they were, or at the end; all others stay as they are.
func withHostsBlock(text string, block []string) string {
	var lines []string
	inside := false
	for _, line := range strings.Split(strings.TrimRight(text, "\n"), "\n") {
		switch {
		case line == hostsBegin:
			inside = true
		case line == hostsEnd:
			inside = false
		case !inside:
			lines = append(lines, line)
		}
	}
	return strings.TrimLeft(strings.Join(append(lines, block...), "\n")+"\n", "\n")
}

// replaceFile renames a new file over the old one; where that is not possible (a bind mount) it writes in place.
func replaceFile(path string, text []byte) error {
	if current, err := os.ReadFile(path); err == nil && string(current) == string(text) {
		return nil
	}
	temporary := path + ".podyard"
	if err := os.WriteFile(temporary, text, 0o644); err == nil {
		if os.Rename(temporary, path) == nil {
			return nil
		}
		os.Remove(temporary)
	}
	return os.WriteFile(path, text, 0o644)
}

func runShutdown() int {
	if os.Geteuid() != 0 {
		err := elevate()
		return fail(newControl(), err)
	}
	control := newControl()
	// The answer goes first: the connection may not outlive the power-off. This process stays until then at most.
	control.sendJSON(frameAnswer, nil)
	if err := requestPowerOff(); err != nil {
		return 1
	}
	return 0
}

func isDirectory(path string) bool {
	information, err := os.Stat(path)
	return err == nil && information.IsDir()
}

type volume struct {
	Index     int    `json:"index"`
	MountPath string `json:"mountPath"`
	ReadOnly  bool   `json:"readOnly"`
}

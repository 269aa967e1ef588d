// What only Linux has.
package main

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// dieWithParent ends the process if its supervisor is killed: nobody could own its output or record its exit any more.
// The kernel ties this to the thread that forks, so runDaemon stays on the main thread, which never ends.
func dieWithParent(attributes *syscall.SysProcAttr) { attributes.Pdeathsig = syscall.SIGKILL }

// leaveLoginSession moves the daemon out of the login session's control group, which systemd-logind may end at logout.
func leaveLoginSession() {
	membership, err := os.ReadFile("/proc/self/cgroup")
	if err != nil || !strings.Contains(string(membership), "/session-") || os.Geteuid() != 0 {
		return
	}
	group := "/sys/fs/cgroup/podyard"
	if os.Mkdir(group, 0o755) == nil || isDirectory(group) {
		os.WriteFile(filepath.Join(group, "cgroup.procs"), []byte(strconv.Itoa(os.Getpid())), 0o644)
	}
}

func bootIdentifier() string {
	identifier, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(identifier))
}

type memory struct {
	UsedBytes  uint64 `json:"memoryUsedBytes"`
	TotalBytes uint64 `json:"memoryTotalBytes"`
}

func statistics() (*memory, error) {
	text, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return nil, err
	}
	values := map[string]uint64{}
	for _, line := range strings.Split(string(text), "\n") {
		fields := strings.Fields(line)
		if len(fields) >= 2 {
			kibibytes, _ := strconv.ParseUint(fields[1], 10, 64)
			values[strings.TrimSuffix(fields[0], ":")] = kibibytes * 1024
		}
	}
	total, available := values["MemTotal"], values["MemAvailable"]
	if total == 0 || available > total {
		return nil, errors.New("/proc/meminfo has no MemTotal and MemAvailable")
	}
	return &memory{UsedBytes: total - available, TotalBytes: total}, nil
}

func setHostname(name string) error {
	if err := syscall.Sethostname([]byte(name)); err != nil {
		return err
	}
	// Best effort: on a read-only root file system the name of the running kernel is what counts.
	os.WriteFile("/etc/hostname", []byte(name+"\n"), 0o644)
	return nil
}

// requestPowerOff asks the init system, and has a helper pull the plug if that does not act: small guests run an init
// that knows no power-off.
func requestPowerOff() error {
	if isDirectory("/run/systemd/system") && exec.Command("systemctl", "--no-block", "poweroff").Run() == nil {
		return nil
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	helper := exec.Command(self, "power-off")
	helper.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := helper.Start(); err != nil {
		return err
	}
	for _, command := range [][]string{{"poweroff"}, {"shutdown", "-h", "now"}, {"halt", "-p"}} {
		if exec.Command(command[0], command[1:]...).Run() == nil {
			break
		}
	}
	return nil
}

// powerOffLater is that helper: init gets three seconds.
func powerOffLater() int {
	time.Sleep(3 * time.Second)
	syscall.Sync()
	syscall.Reboot(syscall.LINUX_REBOOT_CMD_POWER_OFF)
	return 0
}

// widenPipe saves switches between processes when much goes through; the default is 64 KiB, 1 MiB needs no privilege.
func widenPipe(file *os.File) {
	if connection, err := file.SyscallConn(); err == nil {
		connection.Control(func(descriptor uintptr) {
			syscall.Syscall(syscall.SYS_FCNTL, descriptor, unix.F_SETPIPE_SZ, 1024*1024)
		})
	}
}

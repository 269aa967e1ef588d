// What only macOS has.
package main

import (
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// dieWithParent has no counterpart on macOS; a terminal's hang-up or a broken pipe ends most processes there.
func dieWithParent(*syscall.SysProcAttr) {}

func leaveLoginSession() {}

func bootIdentifier() string {
	identifier, err := unix.Sysctl("kern.bootsessionuuid")
	if err != nil {
		return ""
	}
	return identifier
}

type memory struct {
	UsedBytes  uint64 `json:"memoryUsedBytes"`
	TotalBytes uint64 `json:"memoryTotalBytes"`
}

var pageCount = regexp.MustCompile(`(?m)^"?(Pages active|Pages wired down|Pages occupied by compressor)"?:\s+(\d+)`)

// statistics counts what Activity Monitor calls used: active, wired and compressed pages.
func statistics() (*memory, error) {
	total, err := unix.SysctlUint64("hw.memsize")
	if err != nil {
		return nil, err
	}
	text, err := exec.Command("/usr/bin/vm_stat").Output()
	if err != nil {
		return nil, err
	}
	var pages uint64
	for _, match := range pageCount.FindAllStringSubmatch(string(text), -1) {
		count, _ := strconv.ParseUint(match[2], 10, 64)
		pages += count
	}
	return &memory{UsedBytes: min(pages*uint64(syscall.Getpagesize()), total), TotalBytes: total}, nil
}

// setHostname sets the three names macOS has; the Bonjour one takes neither dots nor other marks.
func setHostname(name string) error {
	short, _, _ := strings.Cut(name, ".")
	for _, pair := range [][2]string{{"HostName", name}, {"LocalHostName", short}, {"ComputerName", short}} {
		if output, err := exec.Command("/usr/sbin/scutil", "--set", pair[0], pair[1]).CombinedOutput(); err != nil {
			return fmt.Errorf("scutil --set %s: %s", pair[0], strings.TrimSpace(string(output)))
		}
	}
	return nil
}

func requestPowerOff() error { return exec.Command("/sbin/shutdown", "-h", "now").Run() }

func powerOffLater() int { return 2 }

func widenPipe(*os.File) {}

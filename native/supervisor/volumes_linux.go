// Volumes on Linux: the host's share is one virtio-fs with an entry per volume, mounted once; each entry is bound to its
// mountPath. Everything is looked up in the mount table first, so that a second call changes nothing.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sort"
	"strconv"
	"strings"
	"syscall"
)

const (
	shareTag  = "podyard"
	sharePath = "/run/podyard/share"
)

func mountVolumes(header []byte) (any, error) {
	var volumes []volume
	if err := json.Unmarshal(header, &volumes); err != nil {
		return nil, failf("InvalidArgument", "the list of volumes cannot be read: %v", err)
	}
	if len(volumes) == 0 {
		return nil, nil
	}
	if err := mountShare(); err != nil {
		return nil, err
	}
	// A volume may lie inside another one: the outer one first.
	sort.SliceStable(volumes, func(a, b int) bool {
		return strings.Count(filepath.Clean(volumes[a].MountPath), "/") < strings.Count(filepath.Clean(volumes[b].MountPath), "/")
	})
	for _, entry := range volumes {
		if err := bindVolume(entry); err != nil {
			return nil, failf("Internal", "the volume for %q could not be mounted: %v", entry.MountPath, err)
		}
	}
	return nil, nil
}

func mountShare() error {
	if err := os.MkdirAll(sharePath, 0o700); err != nil {
		return err
	}
	if mounted, err := topMount(sharePath); err != nil || mounted != nil {
		return err
	}
	err := syscall.Mount(shareTag, sharePath, "virtiofs", syscall.MS_NOSUID|syscall.MS_NODEV, "")
	if errors.Is(err, syscall.ENODEV) {
		exec.Command("modprobe", "virtiofs").Run()
		err = syscall.Mount(shareTag, sharePath, "virtiofs", syscall.MS_NOSUID|syscall.MS_NODEV, "")
	}
	switch {
	case errors.Is(err, syscall.ENODEV):
		return &failure{Code: "MissingPrerequisite", Message: "the guest's kernel has no virtio-fs, which volumes need", Fix: "Use an image with Linux 5.4 or later and the virtiofs module"}
	case err != nil:
		return failf("Internal", "the share %q could not be mounted: %v", shareTag, err)
	}
	return nil
}

func bindVolume(entry volume) error {
	source := filepath.Join(sharePath, strconv.Itoa(entry.Index))
	information, err := os.Stat(source)
	if err != nil {
		return fmt.Errorf("entry %d of the share: %w", entry.Index, err)
	}
	if !filepath.IsAbs(entry.MountPath) {
		return errors.New("the path is not absolute")
	}
	if err := makeTarget(entry.MountPath, information.IsDir()); err != nil {
		return err
	}
	// The mount table knows real paths only (/var/run is /run).
	target, err := filepath.EvalSymlinks(entry.MountPath)
	if err != nil {
		return err
	}
	share, err := topMount(sharePath)
	if err != nil || share == nil {
		return errors.Join(err, errors.New("the share is gone"))
	}
	mounted, err := topMount(target)
	if err != nil {
		return err
	}
	if mounted == nil || mounted.device != share.device || mounted.root != filepath.Join(share.root, strconv.Itoa(entry.Index)) {
		if err := syscall.Mount(source, target, "", syscall.MS_BIND, ""); err != nil {
			return err
		}
	}
	flags := uintptr(syscall.MS_BIND | syscall.MS_REMOUNT | syscall.MS_NOSUID | syscall.MS_NODEV)
	if entry.ReadOnly {
		flags |= syscall.MS_RDONLY
	}
	return syscall.Mount("", target, "", flags, "")
}

func makeTarget(path string, directory bool) error {
	if _, err := os.Stat(path); err == nil {
		return nil
	}
	if directory {
		return os.MkdirAll(path, 0o755)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	file, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	return file.Close()
}

type mountEntry struct{ device, root string }

var unescapeMount = strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)

// topMount gives the uppermost mount exactly at the path, nil if there is none. See proc_pid_mountinfo(5).
func topMount(path string) (*mountEntry, error) {
	table, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	var found *mountEntry
	for _, line := range strings.Split(string(table), "\n") {
		fields := strings.Fields(line)
		if len(fields) > 5 && unescapeMount.Replace(fields[4]) == path {
			found = &mountEntry{device: fields[2], root: unescapeMount.Replace(fields[3])}
		}
	}
	return found, nil
}

// Volumes on macOS: the system mounts the host's share at /Volumes/My Shared Files by itself; mountPath becomes a symbolic
// link into it. The root of the system volume is sealed, so a path directly below / cannot be made there.
package main

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
)

const shareRoot = "/Volumes/My Shared Files"

func mountVolumes(header []byte) (any, error) {
	var volumes []volume
	if err := json.Unmarshal(header, &volumes); err != nil {
		return nil, failf("InvalidArgument", "the list of volumes cannot be read: %v", err)
	}
	for _, entry := range volumes {
		if err := linkVolume(entry); err != nil {
			return nil, err
		}
	}
	return nil, nil
}

func linkVolume(entry volume) error {
	source := filepath.Join(shareRoot, filepath.Base(entry.MountPath))
	if _, err := os.Stat(source); err != nil {
		source = filepath.Join(shareRoot, strconv.Itoa(entry.Index))
	}
	if _, err := os.Stat(source); err != nil {
		return failf("Internal", "the volume for %q is not in the share: %v", entry.MountPath, err)
	}
	if entry.MountPath == source {
		return nil
	}
	if target, err := os.Readlink(entry.MountPath); err == nil && target == source {
		return nil
	}
	err := os.MkdirAll(filepath.Dir(entry.MountPath), 0o755)
	if err == nil {
		// Removes a link of an earlier start or an empty directory; anything else stays and is reported.
		os.Remove(entry.MountPath)
		err = os.Symlink(source, entry.MountPath)
	}
	switch {
	case errors.Is(err, syscall.EROFS):
		return &failure{
			Code:    "Unsupported",
			Message: "the volume for \"" + entry.MountPath + "\" cannot be mounted: macOS keeps the root of its system volume sealed",
			Fix:     "Choose a mountPath below /Users, /private, /opt or /usr/local, or add its first folder to /etc/synthetic.conf in the image",
		}
	case err != nil:
		return failf("Conflict", "the volume for %q cannot be linked: %v", entry.MountPath, err)
	}
	return nil
}

package main

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

func TestHostsBlockIsReplacedAndTheRestKept(t *testing.T) {
	block := []string{hostsBegin, "10.0.0.1\tvm.pod.internal", hostsEnd}
	text := "127.0.0.1\tlocalhost\n\n# mine\n"
	once := withHostsBlock(text, block)
	if once != "127.0.0.1\tlocalhost\n\n# mine\n"+strings.Join(block, "\n")+"\n" {
		t.Errorf("unexpected hosts file: %q", once)
	}
	if twice := withHostsBlock(once, block); twice != once {
		t.Errorf("a second time changes it: %q", twice)
	}
	if empty := withHostsBlock("", block); !strings.HasPrefix(empty, hostsBegin) {
		t.Errorf("an empty file gets %q", empty)
	}
}

func TestLogKeepsTextByteForByte(t *testing.T) {
	path := filepath.Join(t.TempDir(), "output")
	file, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	log := newLogWriter(file, func() {})
	text := "one\n\n" + strings.Repeat("x", 2*maximumLine+5) + "\nprompt> "
	for _, piece := range []string{text[:2], text[2:40], text[40:]} {
		log.write("stdout", []byte(piece))
	}
	log.flush("stdout", "stderr")
	written, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	line := regexp.MustCompile(`^\S+ stdout ([FP]) (.*)$`)
	var back bytes.Buffer
	for _, record := range strings.Split(strings.TrimSuffix(string(written), "\n"), "\n") {
		match := line.FindStringSubmatch(record)
		if match == nil || len(match[2]) > maximumLine {
			t.Fatalf("unexpected record %.80q", record)
		}
		back.WriteString(match[2])
		if match[1] == "F" {
			back.WriteByte('\n')
		}
	}
	if back.String() != text {
		t.Errorf("%d bytes came back as %d", len(text), back.Len())
	}
}

func TestLookUpFollowsPath(t *testing.T) {
	directory := t.TempDir()
	os.WriteFile(filepath.Join(directory, "plain"), nil, 0o644)
	os.WriteFile(filepath.Join(directory, "program"), nil, 0o755)
	os.Mkdir(filepath.Join(directory, "folder"), 0o755)
	path := "/nowhere:" + directory
	for name, want := range map[string]int{"plain": 126, "folder": 127, "missing": 127} {
		_, err := lookUp(name, path, "/")
		var refusal *launchError
		if !errors.As(err, &refusal) || refusal.exitCode != want {
			t.Errorf("%s gives %v, not %d", name, err, want)
		}
	}
	if found, err := lookUp("program", path, "/"); err != nil || found != filepath.Join(directory, "program") {
		t.Errorf("program is found as %q, %v", found, err)
	}
	if found, err := lookUp("./any thing", path, "/"); err != nil || found != "./any thing" {
		t.Errorf("a path is not taken as it is: %q, %v", found, err)
	}
}

func TestCurrentLineIsWhatFollowsTheLastLineEnd(t *testing.T) {
	line := currentLine(nil, []byte("a\nb"))
	line = currentLine(line, []byte("c"))
	if string(line) != "bc" {
		t.Errorf("got %q", line)
	}
	if line = currentLine(line, bytes.Repeat([]byte("x"), 9000)); len(line) != 4096 {
		t.Errorf("%d bytes are kept", len(line))
	}
	if line = currentLine(line, []byte("\n")); len(line) != 0 {
		t.Errorf("got %q", line)
	}
}

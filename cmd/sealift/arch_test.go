package main

import (
	"encoding/binary"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// program is an ELF header, static unless it has an interpreter.
func program(machine uint16, interpreter bool) []byte {
	b := make([]byte, 64+56)
	copy(b, "\x7fELF\x02\x01\x01")
	le := binary.LittleEndian
	le.PutUint16(b[16:], 2) // ET_EXEC
	le.PutUint16(b[18:], machine)
	le.PutUint32(b[20:], 1)
	le.PutUint64(b[32:], 64)
	le.PutUint16(b[52:], 64)
	le.PutUint16(b[54:], 56)
	le.PutUint16(b[58:], 64)
	if interpreter {
		le.PutUint16(b[56:], 1)
		le.PutUint32(b[64:], 3) // PT_INTERP
	}
	return b
}

func TestProgramsOfAnImageAreForItsArchitecture(t *testing.T) {
	const amd64, arm64 = 62, 183
	for _, tc := range []struct {
		claim string
		files map[string][]byte
		arch  string
		want  string // file, or what the error says
	}{
		{"the one for the architecture is taken", map[string][]byte{"agent": program(amd64, false), "agent-arm64": program(arm64, false)}, "arm64", "agent-arm64"},
		{"a native one needs no suffix", map[string][]byte{"agent": program(amd64, false), "agent-arm64": program(arm64, false)}, "amd64", "agent"},
		{"an arm64 machine's own is native there", map[string][]byte{"agent": program(arm64, false)}, "arm64", "agent"},
		{"one for another architecture is refused", map[string][]byte{"agent": program(amd64, false)}, "arm64", "EM_X86_64, want an executable for arm64, and there is no agent-arm64"},
		{"a wrong one under the right name is refused", map[string][]byte{"agent": program(amd64, false), "agent-arm64": program(amd64, false)}, "arm64", "agent-arm64: it is a ET_EXEC for EM_X86_64"},
		{"a dynamic one is refused", map[string][]byte{"agent-arm64": program(arm64, true)}, "arm64", "needs a dynamic linker"},
		{"a text file is refused", map[string][]byte{"agent": []byte("#!/bin/sh\nexec sealift\n")}, "amd64", "bad magic number"},
		{"a missing one is named", nil, "arm64", "agent-arm64: no such file"},
	} {
		t.Run(tc.claim, func(t *testing.T) {
			dir := t.TempDir()
			for name, b := range tc.files {
				if err := os.WriteFile(filepath.Join(dir, name), b, 0o755); err != nil {
					t.Fatal(err)
				}
			}
			got, err := findImageProgram(dir, "agent", tc.arch)
			if err != nil {
				if !strings.Contains(err.Error(), tc.want) {
					t.Errorf("error is %v, want one with %q", err, tc.want)
				}
				return
			}
			if filepath.Base(got) != tc.want {
				t.Errorf("took %s, want %s", got, tc.want)
			}
		})
	}
}

func TestUnknownArchitectureIsAUsageError(t *testing.T) {
	if err := checkArch("riscv64"); err == nil || exitCode(err) != 2 {
		t.Errorf("got %v", err)
	}
	for _, ok := range []string{"", "amd64", "arm64"} {
		if err := checkArch(ok); err != nil {
			t.Error(err)
		}
	}
}

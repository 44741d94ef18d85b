package main

import (
	"errors"
	"fmt"
	"io/fs"
	"math"
	"path"
	"slices"
	"strconv"
	"strings"
)

// memoryBound is how much memory this process may have, bytes, and the file that
// says so: the machine's memory, or the least that a control group which it is in
// allows (memory.max and memory.high of version 2, memory.limit_in_bytes of
// version 1; cgroups(7)). A container and a systemd unit with MemoryMax are such
// groups, and the kernel kills what grows past them. root is the file system.
func memoryBound(root fs.FS) (bound int64, file string, err error) {
	if bound, err = machineMemory(root); err != nil {
		return 0, "", err
	}
	file = "/proc/meminfo"
	dirs, err := memoryGroups(root)
	if err != nil {
		return 0, "", err
	}
	for _, dir := range dirs {
		for _, name := range []string{"memory.max", "memory.high", "memory.limit_in_bytes"} {
			at := path.Join(dir, name)
			b, err := fs.ReadFile(root, at)
			if err != nil {
				continue // of the other version, or the root group, which has none
			}
			n, err := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64)
			if err == nil && n > 0 && n < bound { // "max" is no number
				bound, file = n, "/"+at
			}
		}
	}
	return bound, file, nil
}

// machineMemory is MemTotal of proc_meminfo(5).
func machineMemory(root fs.FS) (int64, error) {
	b, err := fs.ReadFile(root, "proc/meminfo")
	if err != nil {
		return 0, fmt.Errorf("memory of this machine: %w", err)
	}
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		if len(f) != 3 || f[0] != "MemTotal:" || f[2] != "kB" {
			continue
		}
		kB, err := strconv.ParseInt(f[1], 10, 64)
		if err != nil || kB <= 0 || kB > math.MaxInt64>>10 {
			return 0, fmt.Errorf("memory of this machine: /proc/meminfo says %q", f[1])
		}
		return kB << 10, nil
	}
	return 0, errors.New("memory of this machine: /proc/meminfo does not say it")
}

// memoryGroups returns the directories, relative to root, of the control groups
// for memory that the process is in, each with those above it as far as they are
// mounted here.
func memoryGroups(root fs.FS) ([]string, error) {
	member, err := fs.ReadFile(root, "proc/self/cgroup")
	if err != nil {
		return nil, fmt.Errorf("control groups of this process: %w", err)
	}
	mounts, err := fs.ReadFile(root, "proc/self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("control groups of this process: %w", err)
	}
	var dirs []string
	for line := range strings.Lines(string(mounts)) {
		// proc_pid_mountinfo(5): fields, optional ones, a dash, type, source, options
		left, right, _ := strings.Cut(line, " - ")
		at, fsType := strings.Fields(left), strings.Fields(right)
		if len(at) < 5 || len(fsType) < 3 {
			continue
		}
		var group string
		found := false
		switch fsType[0] {
		case "cgroup2":
			group, found = groupOf(member, "")
		case "cgroup":
			if slices.Contains(strings.Split(fsType[2], ","), "memory") {
				group, found = groupOf(member, "memory")
			}
		}
		if !found {
			continue
		}
		unescape := strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)
		mountRoot, mountPoint := unescape.Replace(at[3]), unescape.Replace(at[4])
		below, ok := strings.CutPrefix(group+"/", strings.TrimSuffix(mountRoot, "/")+"/")
		if !ok {
			below = "" // what is mounted is another part of the tree, as a container sees its own
		}
		top := strings.TrimPrefix(path.Clean(mountPoint), "/")
		for dir := path.Join(top, below); ; dir = path.Dir(dir) {
			dirs = append(dirs, dir)
			if dir == top || dir == "." {
				break
			}
		}
	}
	return dirs, nil
}

// groupOf returns the path of the group that /proc/self/cgroup names for a
// controller of version 1, or that of version 2 if it is empty.
func groupOf(member []byte, controller string) (group string, found bool) {
	for line := range strings.Lines(string(member)) {
		f := strings.SplitN(strings.TrimSuffix(line, "\n"), ":", 3)
		if len(f) != 3 {
			continue
		}
		if controller == "" && f[0] == "0" && f[1] == "" || controller != "" && slices.Contains(strings.Split(f[1], ","), controller) {
			return path.Clean("/" + f[2]), true
		}
	}
	return "", false
}

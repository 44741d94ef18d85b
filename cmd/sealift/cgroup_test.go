package main

import (
	"bytes"
	"log/slog"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const (
	memTotal = "MemTotal:        2097152 kB\nMemFree:          100000 kB\n" // 2 GiB
	mountV2  = "30 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n"
	mountV1  = "31 23 0:27 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n32 23 0:28 / /sys/fs/cgroup/memory rw shared:9 - cgroup cgroup rw,memory\n"
	endless  = "9223372036854771712\n" // what version 1 says of no limit
)

func TestTheLowestBoundOnMemoryCounts(t *testing.T) {
	t.Parallel()
	const MiB = 1 << 20
	for name, tt := range map[string]struct {
		files map[string]string
		want  int64
		file  string
	}{
		"no groups": {map[string]string{"proc/self/cgroup": "", "proc/self/mountinfo": "22 1 0:21 / / rw - ext4 /dev/sda rw\n"}, 2048 * MiB, "/proc/meminfo"},
		"version 2, a unit": {map[string]string{
			"proc/self/cgroup": "0::/system.slice/sealift.service\n", "proc/self/mountinfo": mountV2,
			"sys/fs/cgroup/system.slice/sealift.service/memory.max":  "536870912\n",
			"sys/fs/cgroup/system.slice/sealift.service/memory.high": "max\n", "sys/fs/cgroup/system.slice/memory.max": "max\n",
		}, 512 * MiB, "/sys/fs/cgroup/system.slice/sealift.service/memory.max"},
		"version 2, a group above": {map[string]string{
			"proc/self/cgroup": "0::/a.slice/b.service\n", "proc/self/mountinfo": mountV2,
			"sys/fs/cgroup/a.slice/b.service/memory.max": "max\n", "sys/fs/cgroup/a.slice/memory.max": "268435456\n",
		}, 256 * MiB, "/sys/fs/cgroup/a.slice/memory.max"},
		"version 2, throttled before": {map[string]string{
			"proc/self/cgroup": "0::/b.service\n", "proc/self/mountinfo": mountV2,
			"sys/fs/cgroup/b.service/memory.max": "536870912\n", "sys/fs/cgroup/b.service/memory.high": "402653184\n",
		}, 384 * MiB, "/sys/fs/cgroup/b.service/memory.high"},
		"version 2, a container with a namespace": {map[string]string{
			"proc/self/cgroup": "0::/\n", "proc/self/mountinfo": mountV2, "sys/fs/cgroup/memory.max": "134217728\n",
		}, 128 * MiB, "/sys/fs/cgroup/memory.max"},
		"more than the machine has": {map[string]string{
			"proc/self/cgroup": "0::/\n", "proc/self/mountinfo": mountV2, "sys/fs/cgroup/memory.max": "1099511627776\n",
		}, 2048 * MiB, "/proc/meminfo"},
		"version 1, a unit": {map[string]string{
			"proc/self/cgroup": "5:cpu,cpuacct:/x\n4:memory:/system.slice/sealift.service\n0::/\n", "proc/self/mountinfo": mountV1,
			"sys/fs/cgroup/memory/system.slice/sealift.service/memory.limit_in_bytes": "536870912\n",
			"sys/fs/cgroup/memory/memory.limit_in_bytes":                              endless,
		}, 512 * MiB, "/sys/fs/cgroup/memory/system.slice/sealift.service/memory.limit_in_bytes"},
		"version 1, none": {map[string]string{
			"proc/self/cgroup": "4:memory:/\n", "proc/self/mountinfo": mountV1, "sys/fs/cgroup/memory/memory.limit_in_bytes": endless,
		}, 2048 * MiB, "/proc/meminfo"},
		"version 1, a container without a namespace": {map[string]string{
			"proc/self/cgroup":                           "4:memory:/docker/0123\n",
			"proc/self/mountinfo":                        "32 23 0:28 /docker/0123 /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n",
			"sys/fs/cgroup/memory/memory.limit_in_bytes": "268435456\n",
		}, 256 * MiB, "/sys/fs/cgroup/memory/memory.limit_in_bytes"},
		"both versions, memory in the first": {map[string]string{
			"proc/self/cgroup": "4:memory:/a\n0::/a\n", "proc/self/mountinfo": mountV1 + "33 23 0:29 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n",
			"sys/fs/cgroup/memory/a/memory.limit_in_bytes": "268435456\n", "sys/fs/cgroup/unified/a/cgroup.procs": "1\n",
		}, 256 * MiB, "/sys/fs/cgroup/memory/a/memory.limit_in_bytes"},
		"another place than is mounted": {map[string]string{
			"proc/self/cgroup": "0::/../../elsewhere\n", "proc/self/mountinfo": mountV2, "sys/fs/cgroup/memory.max": "268435456\n",
		}, 256 * MiB, "/sys/fs/cgroup/memory.max"},
		"a space in the path": {map[string]string{
			"proc/self/cgroup": "0::/a b\n", "proc/self/mountinfo": "30 23 0:26 / /my\\040groups rw - cgroup2 none rw\n", "my groups/a b/memory.max": "268435456\n",
		}, 256 * MiB, "/my groups/a b/memory.max"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			root := t.TempDir()
			tt.files["proc/meminfo"] = memTotal
			for file, text := range tt.files {
				file = filepath.Join(root, file)
				if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			got, file, err := memoryBound(os.DirFS(root))
			if err != nil || got != tt.want || file != tt.file {
				t.Errorf("%d MiB by %s, %v; want %d MiB by %s", got/MiB, file, err, tt.want/MiB, tt.file)
			}
		})
	}
}

func TestTheBoundOnMemoryOfThisProcessIsFound(t *testing.T) {
	t.Parallel()
	bound, file, err := memoryBound(os.DirFS("/"))
	if err != nil || bound <= 0 {
		t.Errorf("%d by %s: %v", bound, file, err)
	}
}

func TestTheCollectorKeepsBelowTheCeiling(t *testing.T) {
	t.Parallel()
	const MiB = 1 << 20
	for name, tt := range map[string]struct{ heap, stacks, ceiling, want int64 }{
		"idle":                          {20 * MiB, MiB, math.MaxInt64, 160 * MiB},
		"busy":                          {400 * MiB, 10 * MiB, math.MaxInt64, (410 + 4*busyGC) * MiB},
		"idle in a small container":     {20 * MiB, MiB, 100 * MiB, 100 * MiB},
		"busy in a container":           {400 * MiB, 10 * MiB, 420 * MiB, 420 * MiB},
		"more lives than there may be":  {600 * MiB, 10 * MiB, 512 * MiB, 512 * MiB},
		"busy in a container with room": {400 * MiB, 10 * MiB, 800 * MiB, (410 + 4*busyGC) * MiB},
	} {
		if got := memoryLimit(tt.heap, tt.stacks, tt.ceiling); got != tt.want {
			t.Errorf("%s: %d MiB, want %d", name, got/MiB, tt.want/MiB)
		}
	}
}

func TestTooLittleMemoryIsSaid(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	log := func() (*slog.Logger, *bytes.Buffer) {
		b := new(bytes.Buffer)
		return slog.New(slog.NewTextHandler(b, nil)), b
	}
	l, said := log()
	if got := memoryCeiling(os.DirFS(root), l); got != math.MaxInt64 || !strings.Contains(said.String(), "GOMEMLIMIT") {
		t.Errorf("without /proc the ceiling is %d, log: %s", got, said)
	}
	if err := os.MkdirAll(filepath.Join(root, "proc/self"), 0o700); err != nil {
		t.Fatal(err)
	}
	for file, text := range map[string]string{"proc/meminfo": "MemTotal: 65536 kB\n", "proc/self/cgroup": "", "proc/self/mountinfo": ""} {
		if err := os.WriteFile(filepath.Join(root, file), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	l, said = log()
	if got := memoryCeiling(os.DirFS(root), l); got != (64<<20)/5*4 || !strings.Contains(said.String(), "little memory") {
		t.Errorf("of 64 MiB the ceiling is %d, log: %s", got, said)
	}
}

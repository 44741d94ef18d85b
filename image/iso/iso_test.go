package iso

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sealift/sealift/image/disk"
)

func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		if path, err = exec.LookPath("/usr/sbin/" + name); err != nil {
			if os.Getenv("REQUIRE_TOOLS") != "" {
				t.Fatalf("%s is required: %v", name, err)
			}
			t.Skipf("%s is not installed", name)
		}
	}
	out, err := exec.Command(path, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %q: %v\n%s", name, args, err, out)
	}
	return string(out)
}

func noise(n int) []byte {
	b := make([]byte, n)
	rand.NewChaCha8([32]byte{byte(n)}).Read(b)
	return b
}

// contents are the files of the test's medium.
var contents = []struct {
	name string
	data []byte
}{
	{"manifest.json", []byte("{}\n")},
	{"manifest.json.sigstore.json", noise(2048)},
	{"disk.raw.zst", noise(3<<20 + 17)},
	{"empty", nil},
	{"a-file_with.a.rather.long.name-0123456789-0123456789-0123456789-0123456789-0123456789.text", noise(1)},
}

func medium(boot []byte) Medium {
	m := Medium{Label: "SEALIFT", Boot: disk.ESPFile{Path: "/EFI/BOOT/BOOTX64.EFI", Data: boot}, Epoch: time.Unix(1750000000, 0)}
	for _, c := range contents {
		m.Files = append(m.Files, File{c.name, int64(len(c.data)), bytes.NewReader(c.data)})
	}
	return m
}

func writeFile(t *testing.T, m Medium) string {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "installer.iso"))
	if err != nil {
		t.Fatal(err)
	}
	n, err := Write(f, m)
	if err == nil {
		err = f.Truncate(n)
	}
	if err := errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
	return f.Name()
}

func TestToolsReadTheMedium(t *testing.T) {
	boot := noise(5<<20 + 3)
	file := writeFile(t, medium(boot))
	raw, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}

	t.Run("xorriso finds every file under its own name", func(t *testing.T) {
		dir := t.TempDir()
		run(t, "xorriso", "-abort_on", "WARNING", "-osirrox", "on", "-indev", file, "-extract", "/", filepath.Join(dir, "x"))
		entries, err := os.ReadDir(filepath.Join(dir, "x"))
		if err != nil || len(entries) != len(contents) {
			t.Errorf("got %v, %v", entries, err)
		}
		for _, c := range contents {
			if b, err := os.ReadFile(filepath.Join(dir, "x", c.name)); err != nil || !bytes.Equal(b, c.data) {
				t.Errorf("%s has another content (%v)", c.name, err)
			}
		}
		if out := run(t, "xorriso", "-indev", file, "-find", "/", "-exec", "lsdl"); !strings.Contains(out, "-r--r--r--") || !strings.Contains(out, "Jun 15  2025") {
			t.Errorf("modes or times are wrong:\n%s", out)
		}
	})
	t.Run("xorriso finds the boot catalogue and both tables", func(t *testing.T) {
		out := run(t, "xorriso", "-abort_on", "WARNING", "-indev", file, "-report_el_torito", "plain", "-report_system_area", "plain")
		for _, want := range []string{"Volume id    : 'SEALIFT'", "El Torito catalog  : 19  1", "El Torito boot img :   1  UEFI  y   none", "protective-msdos-label", "GPT partname local :   1  esp", "GPT partname local :   2  files", "GPT type GUID      :   1  28732ac11ff8d211ba4b00a0c93ec93b"} {
			if !strings.Contains(out, want) {
				t.Errorf("xorriso does not report %q:\n%s", want, out)
			}
		}
	})
	t.Run("isoinfo reads names and the label", func(t *testing.T) {
		if out := run(t, "isoinfo", "-d", "-i", file); !strings.Contains(out, "Volume id: SEALIFT") || !strings.Contains(out, "Rock Ridge signatures version 1 found") || !strings.Contains(out, "boot catalog is in sector 19") {
			t.Errorf("isoinfo -d:\n%s", out)
		}
		if out := run(t, "isoinfo", "-f", "-i", file); !strings.Contains(out, "/MANIFEST_JSON_SIGSTORE.JSON;1") || !strings.Contains(out, "/DISK_RAW.ZST;1") {
			t.Errorf("isoinfo -f:\n%s", out)
		}
		if out := run(t, "isoinfo", "-R", "-x", "/manifest.json", "-i", file); out != "{}\n" {
			t.Errorf("isoinfo -x: %q", out)
		}
	})
	t.Run("sgdisk finds a sound table", func(t *testing.T) {
		if out := run(t, "sgdisk", "--verify", file); !strings.Contains(out, "No problems found") {
			t.Errorf("sgdisk --verify:\n%s", out)
		}
	})
	t.Run("the boot catalogue and the table lead to the same file system", func(t *testing.T) {
		p, err := (&Medium{Files: medium(boot).Files, Boot: disk.ESPFile{Data: boot}}).plan()
		if err != nil {
			t.Fatal(err)
		}
		if le := raw[19*2048+40:]; int64(le[0])|int64(le[1])<<8|int64(le[2])<<16 != p.esp/2048 {
			t.Errorf("the catalogue's block is %x, want %x", le[:4], p.esp/2048)
		}
		esp := filepath.Join(t.TempDir(), "esp")
		if err := os.WriteFile(esp, raw[p.esp:p.esp+p.espSize], 0o600); err != nil {
			t.Fatal(err)
		}
		run(t, "fsck.vfat", "-n", esp)
		got := filepath.Join(t.TempDir(), "boot")
		run(t, "mcopy", "-i", esp, "::/EFI/BOOT/BOOTX64.EFI", got)
		if b, err := os.ReadFile(got); err != nil || !bytes.Equal(b, boot) {
			t.Errorf("it holds another program (%v)", err)
		}
		if out := run(t, "sgdisk", "-i", "1", file); !strings.Contains(out, "EFI system partition") {
			t.Errorf("sgdisk -i 1:\n%s", out)
		}
	})
}

func TestTheSameMediumHasTheSameBytes(t *testing.T) {
	t.Setenv("SOURCE_DATE_EPOCH", "1")
	a, err1 := os.ReadFile(writeFile(t, medium(noise(1000))))
	t.Setenv("SOURCE_DATE_EPOCH", "2")
	t.Setenv("TZ", "Asia/Kathmandu")
	b, err2 := os.ReadFile(writeFile(t, medium(noise(1000))))
	if err := errors.Join(err1, err2); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(a, b) {
		t.Error("two media differ")
	}
	other := medium(noise(1001))
	c, err := os.ReadFile(writeFile(t, other))
	if err != nil || bytes.Equal(a[512:1024], c[512:1024]) {
		t.Errorf("a medium with another program has the same disk GUID (%v)", err)
	}
}

// holes takes a medium whose files are too large to keep.
type holes struct{ kept map[int64][]byte }

func (h *holes) ReadAt(p []byte, off int64) (int, error) {
	clear(p)
	for at, b := range h.kept {
		for i := range p {
			if j := off + int64(i) - at; j >= 0 && j < int64(len(b)) {
				p[i] = b[j]
			}
		}
	}
	return len(p), nil
}

func (h *holes) WriteAt(p []byte, off int64) (int, error) {
	h.kept[off] = bytes.Clone(p)
	return len(p), nil
}

func TestAFileOverFourGiBHasSeveralRecords(t *testing.T) {
	m := Medium{Label: "X", Epoch: time.Unix(1750000000, 0), Files: []File{{"big", 9 << 30, nil}, {"small", 1, nil}}}
	p, err := (&Medium{Files: m.Files, Boot: disk.ESPFile{Data: []byte("x")}}).plan()
	if err != nil {
		t.Fatal(err)
	}
	dir := m.directory(p)
	var sizes []int64
	var next uint32
	for at := 0; at < len(dir) && dir[at] != 0; at += int(dir[at]) {
		r := dir[at:]
		if string(r[33:36]) != "BIG" {
			continue
		}
		block, size := uint32(r[2])|uint32(r[3])<<8|uint32(r[4])<<16|uint32(r[5])<<24, uint32(r[10])|uint32(r[11])<<8|uint32(r[12])<<16|uint32(r[13])<<24
		if next != 0 && block != next {
			t.Errorf("a record begins at block %d, the one before ends at %d", block, next)
		}
		next = block + size/2048
		sizes = append(sizes, int64(size))
		if last := len(sizes) == 3; last == (r[25]&flagMore != 0) {
			t.Errorf("record %d has flags %x", len(sizes), r[25])
		}
	}
	if len(sizes) != 3 || sizes[0]+sizes[1]+sizes[2] != 9<<30 {
		t.Errorf("got records of %v bytes", sizes)
	}
}

func TestWhatIsNoMediumIsRefused(t *testing.T) {
	full := errors.New("no space left on device")
	for name, c := range map[string]struct {
		edit func(*Medium)
		want string
	}{
		"a label in lower case":      {func(m *Medium) { m.Label = "sealift" }, `label "sealift"`},
		"no label":                   {func(m *Medium) { m.Label = "" }, `label ""`},
		"no program":                 {func(m *Medium) { m.Boot.Data = nil }, "no program to boot"},
		"a path as a name":           {func(m *Medium) { m.Files[0].Name = "../x" }, `file name "../x"`},
		"a name that is the parent":  {func(m *Medium) { m.Files[0].Name = ".." }, `file name ".."`},
		"two names that fold to one": {func(m *Medium) { m.Files[1].Name = "MANIFEST.json" }, "have the same name"},
		"a file that is shorter":     {func(m *Medium) { m.Files[2].Size++ }, "disk.raw.zst: got 3145745 bytes, want 3145746"},
		"a file that is longer":      {func(m *Medium) { m.Files[2].Size-- }, "disk.raw.zst: "},
		"a file that cannot be read": {func(m *Medium) { m.Files[2].Content = io.MultiReader(failing{full}) }, "disk.raw.zst: no space"},
		"a year that FAT has not":    {func(m *Medium) { m.Epoch = time.Unix(0, 0) }, "epoch 1970"},
		"more than a disk":           {func(m *Medium) { m.Files[2].Size = 1 << 50 }, "at most"},
	} {
		t.Run(name, func(t *testing.T) {
			m := medium(noise(10))
			c.edit(&m)
			_, err := Write(&holes{map[int64][]byte{}}, m)
			if err == nil || !strings.Contains(err.Error(), c.want) || !strings.HasPrefix(err.Error(), "write installation medium: ") {
				t.Errorf("error is %v, want one with %q", err, c.want)
			}
		})
	}
}

type failing struct{ error }

func (f failing) Read([]byte) (int, error) { return 0, f.error }

package verity

import (
	"bytes"
	"encoding/hex"
	"errors"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// image makes a data file and a hash file by veritysetup and returns the
// configuration to open them.
func image(t *testing.T, blocks int, args ...string) Config {
	t.Helper()
	path, err := exec.LookPath("veritysetup")
	if err != nil {
		path = "/usr/sbin/veritysetup"
		if _, err := os.Stat(path); err != nil {
			if os.Getenv("REQUIRE_TOOLS") != "" {
				t.Fatal("veritysetup is not installed")
			}
			t.Skip("veritysetup is not installed")
		}
	}
	dir := t.TempDir()
	c := Config{Name: "test", Data: filepath.Join(dir, "data"), Hash: filepath.Join(dir, "hash")}
	data := make([]byte, blocks*BlockSize)
	rand.NewChaCha8([32]byte{1}).Read(data)
	if err := os.WriteFile(c.Data, data, 0o644); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command(path, append([]string{"format", c.Data, c.Hash}, args...)...).CombinedOutput()
	if err != nil {
		t.Fatalf("veritysetup format: %v\n%s", err, out)
	}
	m := regexp.MustCompile(`Root hash:\s*([0-9a-f]{64,128})\n`).FindSubmatch(out)
	if m == nil {
		t.Fatalf("veritysetup format shows no root hash:\n%s", out)
	}
	root, err := hex.DecodeString(string(m[1]))
	if err != nil {
		t.Fatal(err)
	}
	copy(c.RootHash[:], root)
	return c
}

func TestWhatVeritysetupFormatsPassesTheCheck(t *testing.T) {
	salt := strings.Repeat("5a", 256)
	for name, tt := range map[string]struct {
		blocks int
		args   []string
	}{
		"one level":      {128, nil},
		"two levels":     {129, nil},
		"three levels":   {128*128 + 1, nil},
		"without salt":   {200, []string{"--salt=-"}},
		"with long salt": {200, []string{"--salt=" + salt}},
	} {
		c := image(t, tt.blocks, tt.args...)
		s, err := check(c)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if s.DataBlocks != uint64(tt.blocks) {
			t.Errorf("%s: got %d blocks, want %d", name, s.DataBlocks, tt.blocks)
		}
		st, err := os.Stat(c.Hash)
		if err != nil {
			t.Fatal(err)
		}
		if got, want := int64(1+hashBlocks(s.DataBlocks))*BlockSize, st.Size(); got != want {
			t.Errorf("%s: tree has %d bytes, want %d", name, got, want)
		}
	}
}

func TestTheCheckFailsBeforeTheKernelWouldPanic(t *testing.T) {
	patch := func(t *testing.T, path string, at int64, b ...byte) {
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if _, err := f.WriteAt(b, at); err != nil {
			t.Fatal(err)
		}
	}
	for name, tt := range map[string]struct {
		change func(t *testing.T, c *Config)
		want   error
	}{
		"another root hash":      {func(t *testing.T, c *Config) { c.RootHash[31] ^= 1 }, ErrRootHash},
		"a changed top block":    {func(t *testing.T, c *Config) { patch(t, c.Hash, BlockSize+7, 0) }, ErrRootHash},
		"a changed salt":         {func(t *testing.T, c *Config) { patch(t, c.Hash, 88, 0, 0, 0) }, ErrRootHash},
		"a shortened salt":       {func(t *testing.T, c *Config) { patch(t, c.Hash, 80, 31) }, ErrRootHash},
		"a cut data partition":   {func(t *testing.T, c *Config) { truncate(t, c.Data, 199*BlockSize) }, nil},
		"a cut hash partition":   {func(t *testing.T, c *Config) { truncate(t, c.Hash, 3*BlockSize) }, nil},
		"no superblock":          {func(t *testing.T, c *Config) { patch(t, c.Hash, 0, 0) }, nil},
		"another version":        {func(t *testing.T, c *Config) { patch(t, c.Hash, 8, 2) }, nil},
		"the Chrome OS format":   {func(t *testing.T, c *Config) { patch(t, c.Hash, 12, 0) }, nil},
		"another algorithm":      {func(t *testing.T, c *Config) { patch(t, c.Hash, 35, 0x31, 0, 0) }, nil},
		"other block sizes":      {func(t *testing.T, c *Config) { patch(t, c.Hash, 64, 0, 2) }, nil},
		"very many blocks":       {func(t *testing.T, c *Config) { patch(t, c.Hash, 79, 0x80) }, nil},
		"a salt beyond its room": {func(t *testing.T, c *Config) { patch(t, c.Hash, 80, 1, 1) }, nil},
		"no hash partition":      {func(t *testing.T, c *Config) { c.Hash += "-none" }, os.ErrNotExist},
	} {
		t.Run(name, func(t *testing.T) {
			c := image(t, 200)
			tt.change(t, &c)
			if _, err := check(c); err == nil || tt.want != nil && !errors.Is(err, tt.want) {
				t.Errorf("got %v, want %v", err, tt.want)
			}
		})
	}
}

func truncate(t *testing.T, path string, size int64) {
	t.Helper()
	if err := os.Truncate(path, size); err != nil {
		t.Fatal(err)
	}
}

func TestPartitionGUIDsAreTheHalvesOfTheRootHash(t *testing.T) {
	var root [32]byte
	for i := range root {
		root[i] = byte(i)
	}
	data, hash := Partitions(root)
	if got, want := data.String(), "00010203-0405-0607-0809-0a0b0c0d0e0f"; got != want {
		t.Errorf("data: got %s, want %s", got, want)
	}
	if got, want := hash.String(), "10111213-1415-1617-1819-1a1b1c1d1e1f"; got != want {
		t.Errorf("hash: got %s, want %s", got, want)
	}
}

func FuzzReadSuperblock(f *testing.F) {
	b := make([]byte, superblockSize)
	copy(b, "verity\x00\x00\x01\x00\x00\x00\x01")
	copy(b[32:], "sha256")
	copy(b[64:], []byte{0, 16, 0, 0, 0, 16, 0, 0, 200})
	copy(b[80:], []byte{32})
	f.Add(b)
	f.Add(b[:88])
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := ReadSuperblock(bytes.NewReader(b))
		if err != nil {
			return
		}
		if len(s.Salt) > 256 || s.DataBlocks < 2 || hashBlocks(s.DataBlocks) == 0 {
			t.Errorf("accepted: %+v", s)
		}
	})
}

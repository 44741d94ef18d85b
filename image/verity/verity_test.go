package verity

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

func needTool(t *testing.T, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		if os.Getenv("REQUIRE_TOOLS") != "" {
			t.Fatalf("%s is required: %v", name, err)
		}
		t.Skipf("%s is not installed", name)
	}
	return path
}

func pattern(size int) []byte {
	b := make([]byte, size)
	r := rand.NewChaCha8([32]byte{1})
	r.Read(b)
	return b
}

func TestVeritysetupAcceptsTheTree(t *testing.T) {
	tool := needTool(t, "veritysetup")
	salt := [32]byte{1, 2, 3, 31: 9}
	for _, blocks := range []int{1, 2, 127, 128, 129, 1024, 1025, 128*128 + 1} {
		t.Run(fmt.Sprintf("%d blocks", blocks), func(t *testing.T) {
			data := pattern(blocks * BlockSize)
			var tree bytes.Buffer
			got, err := Write(t.Context(), &tree, bytes.NewReader(data), int64(len(data)), salt, 3, nil)
			if err != nil {
				t.Fatal(err)
			}
			if int64(tree.Len()) != got.Size || got.Size != Size(int64(len(data))) {
				t.Errorf("wrote %d bytes, said %d, Size says %d", tree.Len(), got.Size, Size(int64(len(data))))
			}
			dir := t.TempDir()
			dataFile, treeFile := filepath.Join(dir, "data"), filepath.Join(dir, "tree")
			if err := errors.Join(os.WriteFile(dataFile, data, 0o600), os.WriteFile(treeFile, tree.Bytes(), 0o600)); err != nil {
				t.Fatal(err)
			}
			if out, err := exec.Command(tool, "verify", dataFile, treeFile, hex.EncodeToString(got.RootHash[:])).CombinedOutput(); err != nil {
				t.Errorf("veritysetup verify: %v\n%s", err, out)
			}
			out, err := exec.Command(tool, "dump", treeFile).CombinedOutput()
			if err != nil || !strings.Contains(string(out), got.UUID.String()) {
				t.Errorf("veritysetup dump does not show UUID %s: %v\n%s", got.UUID, err, out)
			}
			// The tool's own tree is the same, byte for byte.
			theirs := filepath.Join(dir, "theirs")
			args := []string{"format", "--salt=" + hex.EncodeToString(salt[:]), "--uuid=" + got.UUID.String(), dataFile, theirs}
			if out, err := exec.Command(tool, args...).CombinedOutput(); err != nil {
				t.Fatalf("veritysetup format: %v\n%s", err, out)
			}
			want, err := os.ReadFile(theirs)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(want, tree.Bytes()) {
				t.Error("the tree is not the one that veritysetup format writes")
			}
			data[len(data)/2] ^= 1
			if err := os.WriteFile(dataFile, data, 0o600); err != nil {
				t.Fatal(err)
			}
			if exec.Command(tool, "verify", dataFile, treeFile, hex.EncodeToString(got.RootHash[:])).Run() == nil {
				t.Error("veritysetup verify accepts data with a changed bit")
			}
		})
	}
}

func TestTheNumberOfWorkersDoesNotChangeTheTree(t *testing.T) {
	data := pattern(3000 * BlockSize)
	var first []byte
	for _, workers := range []int{1, 2, 7} {
		var b bytes.Buffer
		var last int64
		if _, err := Write(t.Context(), &b, bytes.NewReader(data), int64(len(data)), [32]byte{}, workers, func(n int64) { last = n }); err != nil {
			t.Fatal(err)
		}
		if last != int64(len(data)) {
			t.Errorf("%d workers: last progress is %d, want %d", workers, last, len(data))
		}
		if first == nil {
			first = b.Bytes()
		} else if !bytes.Equal(first, b.Bytes()) {
			t.Errorf("%d workers give another tree", workers)
		}
	}
}

func TestBadInputIsRefused(t *testing.T) {
	data := bytes.NewReader(make([]byte, 2*BlockSize))
	for name, c := range map[string]struct {
		size    int64
		workers int
	}{
		"no data":             {0, 1},
		"negative size":       {-BlockSize, 1},
		"part of a block":     {BlockSize + 1, 1},
		"data ends too early": {3 * BlockSize, 1},
		"no workers":          {BlockSize, 0},
	} {
		if _, err := Write(t.Context(), new(bytes.Buffer), data, c.size, [32]byte{}, c.workers, nil); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	big := pattern(3 * batch * BlockSize)
	if _, err := Write(ctx, new(bytes.Buffer), bytes.NewReader(big), int64(len(big)), [32]byte{}, 1, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("a cancelled context gives %v", err)
	}
}

func BenchmarkWrite(b *testing.B) {
	data := pattern(64 << 20)
	b.SetBytes(int64(len(data)))
	for b.Loop() {
		if _, err := Write(b.Context(), new(bytes.Buffer), bytes.NewReader(data), int64(len(data)), [32]byte{}, 2, nil); err != nil {
			b.Fatal(err)
		}
	}
}

package wipe

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
)

func filled(t *testing.T, size int) *os.File {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "disk"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	if _, err := f.Write(bytes.Repeat([]byte{0xa5}, size)); err != nil {
		t.Fatal(err)
	}
	return f
}

func TestOnlyTheRangeIsZero(t *testing.T) {
	const size, off, n = 4 << 20, 1 << 20, 2<<20 + 512
	for name, zero := range map[string]func(*os.File, int64, int64) error{
		"by Range":   Range,
		"by writing": writeOut,
	} {
		f := filled(t, size)
		if err := zero(f, off, n); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		got, err := os.ReadFile(f.Name())
		if err != nil {
			t.Fatal(err)
		}
		want := bytes.Repeat([]byte{0xa5}, size)
		clear(want[off : off+n])
		if !bytes.Equal(got, want) {
			t.Errorf("%s: the content is not as wanted", name)
		}
	}
}

func TestRangeRefusesWhatIsNotThere(t *testing.T) {
	f := filled(t, 1<<20)
	for name, r := range map[string][2]int64{
		"behind the end":   {1 << 20, 512},
		"across the end":   {1<<20 - 512, 1024},
		"a negative start": {-512, 512},
		"half a sector":    {0, 256},
		"an odd start":     {1, 512},
		"an overflow":      {1<<63 - 512, 1024},
	} {
		if err := Range(f, r[0], r[1]); err == nil {
			t.Errorf("%s was accepted", name)
		}
	}
	if err := Range(f, 0, 0); err != nil {
		t.Errorf("nothing: %v", err)
	}
}

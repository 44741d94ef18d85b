package image

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sealift/sealift/image/manifest"
)

// snapshot returns the digest of every file below a directory.
func snapshot(dir string) (map[string]string, error) {
	all := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := os.ReadFile(path)
		sum := sha256.Sum256(b)
		all[strings.TrimPrefix(path, dir+"/")] = hex.EncodeToString(sum[:8])
		return err
	})
	return all, err
}

func mustSnapshot(t *testing.T, dir string) map[string]string {
	t.Helper()
	all, err := snapshot(dir)
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// complete checks that an output is all that its manifest says, and returns
// the version that it is of.
func complete(t *testing.T, output string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(output, FileManifest))
	if err != nil {
		t.Fatal(err)
	}
	m, err := manifest.Decode(text)
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range m.Artifacts {
		b, err := os.ReadFile(filepath.Join(output, a.Name))
		if err != nil || sha256.Sum256(b) != a.SHA256 {
			t.Errorf("artifact %s does not match the manifest (%v)", a.Name, err)
		}
	}
	return m.Version
}

func TestAKilledBuildLeavesTheOldImageOrNone(t *testing.T) {
	needFile(t, testStub)
	fx := makeFixture(t)
	for _, point := range []order{
		{KillAt: StepRoot}, {KillAt: StepVerity, Done: 1}, {KillAt: StepUKI}, {KillAt: StepDisk},
		{KillAt: StepCompress, Done: 40 << 20}, {KillAt: StepInstaller}, {KillAt: StepQCOW2, Done: 1}, {KillAt: StepISO, Done: 1},
		{KillAt: "published"},
	} {
		t.Run(point.KillAt, func(t *testing.T) {
			t.Parallel()
			o := point
			o.Fixture, o.Outputs, o.Version = fx, everyOutput(), "2"
			o.Output = filepath.Join(t.TempDir(), "image")
			o.runKilled(t, o.process(t))
			if _, err := os.Stat(o.Output); o.KillAt == "published" {
				if v := complete(t, o.Output); v != "2" {
					t.Errorf("got version %s", v)
				}
			} else if !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("a killed first build left an output (%v)", err)
			}

			// With an image there.
			in, err := fx.input(false)
			if err != nil {
				t.Fatal(err)
			}
			in.Output, in.Outputs = o.Output, []Output{OutputRaw}
			if _, err := Build(t.Context(), in); err != nil {
				t.Fatal(err)
			}
			onlyOutput(t, o.Output)
			old := mustSnapshot(t, o.Output)
			o.runKilled(t, o.process(t))
			if o.KillAt == "published" {
				if v := complete(t, o.Output); v != "2" {
					t.Errorf("got version %s", v)
				}
			} else if now := mustSnapshot(t, o.Output); !maps.Equal(old, now) {
				t.Errorf("a killed build changed the image from %v to %v", old, now)
			}
			if _, err := Build(t.Context(), in); err != nil {
				t.Fatal(err)
			}
			onlyOutput(t, o.Output)
			complete(t, o.Output)
		})
	}
}

func TestABuildKilledAtAnyTimeLeavesWholeImages(t *testing.T) {
	needFile(t, testStub)
	o := order{Fixture: makeFixture(t), Outputs: everyOutput(), Output: filepath.Join(t.TempDir(), "image")}
	for i := range 12 {
		cmd := o.process(t)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Duration(i) * 97 * time.Millisecond)
		cmd.Process.Kill()
		cmd.Wait() //nolint:errcheck // it was killed, or is done
		if _, err := os.Stat(o.Output); err == nil {
			complete(t, o.Output)
		}
	}
	if a := o.run(t, o.process(t)); a.Err != "" {
		t.Error(a.Err)
	}
	complete(t, o.Output)
	onlyOutput(t, o.Output)
}

func TestAnImageThatAKilledBuildHadMovedAwayIsPutBack(t *testing.T) {
	in := input(t)
	in.Outputs = []Output{OutputRaw}
	if _, err := Build(t.Context(), in); err != nil {
		t.Fatal(err)
	}
	old := mustSnapshot(t, in.Output)
	s := &staging{output: in.Output, dir: filepath.Join(filepath.Dir(in.Output), ".out.building")}
	// As between the two renames on a file system that cannot exchange.
	if err := errors.Join(os.Mkdir(s.dir, 0o755), os.Rename(in.Output, s.old())); err != nil {
		t.Fatal(err)
	}
	in.Profile.Disk.Slot = 1 // fails
	if _, err := Build(t.Context(), in); err == nil {
		t.Fatal("no error")
	}
	if now := mustSnapshot(t, in.Output); !maps.Equal(old, now) {
		t.Errorf("got %v, want %v", now, old)
	}
	onlyOutput(t, in.Output)
}

func TestASecondBuildIntoTheSameDirectoryIsRefused(t *testing.T) {
	first := input(t)
	first.Outputs = []Output{OutputRaw}
	second := first
	link := filepath.Join(t.TempDir(), "link")
	if err := errors.Join(os.Mkdir(first.Output, 0o755), os.Symlink(first.Output, link)); err != nil {
		t.Fatal(err)
	}
	var once sync.Once
	first.Progress = func(string, int64, int64) {
		once.Do(func() {
			for _, output := range []string{first.Output, link} {
				second.Output = output
				_, err := Build(t.Context(), second)
				if want := fmt.Sprintf("output directory %s: another build is writing it: process %d", output, os.Getpid()); !errors.Is(err, ErrBusy) || !strings.Contains(err.Error(), want) {
					t.Errorf("error is %v, want one with %q", err, want)
				}
			}
		})
	}
	if _, err := Build(t.Context(), first); err != nil {
		t.Fatal(err)
	}
	complete(t, first.Output)
	onlyOutput(t, first.Output)
	// By now the second may.
	if _, err := Build(t.Context(), second); err != nil {
		t.Error(err)
	}
	if info, err := os.Lstat(link); err != nil || info.Mode()&fs.ModeSymlink == 0 {
		t.Errorf("the link to the output was replaced (%v)", err)
	}
}

func TestALockThatIsNoFileIsRefused(t *testing.T) {
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	if err := errors.Join(os.Symlink(at("victim"), at(".link.lock")), os.Symlink(at("text"), at(".file.lock")), os.WriteFile(at("text"), []byte("text"), 0o600),
		unix.Mkfifo(at(".pipe.lock"), 0o600), os.Mkdir(at(".dir.lock"), 0o700)); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"link": "is a link", "file": "is a link", "pipe": "is not a regular file", "dir": "is a directory"} {
		done := make(chan error, 1)
		go func() {
			_, err := stage(at(name))
			done <- err
		}()
		select {
		case err := <-done:
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%s: got %v, want %q", name, err, want)
			}
		case <-time.After(10 * time.Second):
			t.Fatalf("%s: it waits", name)
		}
	}
	if _, err := os.Lstat(at("victim")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the link's target was made: %v", err)
	}
	if b, err := os.ReadFile(at("text")); string(b) != "text" {
		t.Errorf("the link's target holds %q, %v", b, err)
	}
}

func TestOfManyBuildsAtOnceSomeWinAndNoneBreaks(t *testing.T) {
	needFile(t, testStub)
	fx := makeFixture(t)
	output := filepath.Join(t.TempDir(), "image")
	var wg sync.WaitGroup
	answers := make([]answer, 6)
	for i := range answers {
		o := order{Fixture: fx, Output: output, Outputs: []Output{OutputRaw}, Version: fmt.Sprint(i)}
		cmd := o.process(t)
		wg.Go(func() { answers[i] = o.run(t, cmd) })
	}
	wg.Wait()
	won := map[string]bool{}
	for i, a := range answers {
		if a.Err == "" {
			won[fmt.Sprint(i)] = true
		} else if !a.Busy {
			t.Errorf("build %d: %s", i, a.Err)
		}
	}
	if v := complete(t, output); !won[v] {
		t.Errorf("the image is of build %s, those that succeeded are %v", v, won)
	}
	onlyOutput(t, output)
}

func TestAFullDiskIsSaidPlainlyAndLeavesNothing(t *testing.T) {
	needFile(t, testStub)
	fx := makeFixture(t)
	failed := map[string]bool{}
	for size := int64(256 << 10); ; size += size/4 + 4096 {
		if size > 256<<20 {
			t.Fatal("256 MiB are not enough")
		}
		dir := t.TempDir()
		o := order{Fixture: fx, Outputs: everyOutput(), Mount: dir, MountSize: size, Output: filepath.Join(dir, "image")}
		cmd := o.process(t, "TMPDIR="+dir)
		namespaces(cmd, 0)
		a := o.run(t, cmd)
		if a.Err == "" {
			break
		}
		for _, want := range []string{"no space left on device", dir + "/", fmt.Sprintf("the file system of %s had %d MiB for this build, which needs more", dir, (size-1)>>20)} {
			if !strings.Contains(a.Err, want) {
				t.Errorf("%d bytes: error is %q, want one with %q", size, a.Err, want)
			}
		}
		if len(a.After) != 0 {
			t.Errorf("%d bytes: left behind: %v", size, a.After)
		}
		for _, name := range outputFiles() {
			if strings.Contains(a.Err, "/"+name+":") {
				failed[name] = true
			}
		}
	}
	if len(failed) < 2 {
		t.Errorf("the disk was full only while %v were written", failed)
	}
}

func TestAFullDiskLeavesTheOldImage(t *testing.T) {
	needFile(t, testStub)
	dir := t.TempDir()
	o := order{Fixture: makeFixture(t), Outputs: []Output{OutputRaw}, Mount: dir, MountSize: 12 << 20, Output: filepath.Join(dir, "image"), Twice: true}
	cmd := o.process(t)
	namespaces(cmd, 0)
	a := o.run(t, cmd)
	if !strings.Contains(a.Err, "no space left on device") {
		t.Fatalf("error is %q", a.Err)
	}
	if len(a.Before) < 4 || !maps.Equal(a.Before, a.After) {
		t.Errorf("the old image changed from %v to %v", a.Before, a.After)
	}
}

package main

import (
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sealift/sealift/image"
	"github.com/sealift/sealift/image/manifest"
)

func TestDebugImagesAreWarnedOf(t *testing.T) {
	var out strings.Builder
	warnOfDebug([]loadedImage{
		{dir: "a", manifest: &manifest.Manifest{Name: "shop", Version: "1"}},
		{dir: "b", manifest: &manifest.Manifest{Name: "lab", Version: "2", Debug: true}},
	}, slog.New(slog.NewTextHandler(&out, nil)))
	if s := out.String(); strings.Count(s, "\n") != 1 || !strings.Contains(s, `level=WARN msg="image is marked debug, not for production" image="lab 2" directory=b`) {
		t.Errorf("log:\n%s", s)
	}
}

func TestOnlyImagesThatCanBeInstalledAreOffered(t *testing.T) {
	root := t.TempDir()
	built := func(name string, outputs ...string) loadedImage {
		dir := filepath.Join(root, name+strings.Join(outputs, ","))
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		m := &manifest.Manifest{Name: name, Arch: "amd64"}
		for _, o := range outputs {
			kind, file := manifest.KindDiskZstd, image.FileDiskZstd
			if o == "netboot" {
				kind, file = manifest.KindInstaller, image.FileInstaller
			}
			m.Artifacts = append(m.Artifacts, manifest.Artifact{Kind: kind, Name: file})
			if err := os.WriteFile(filepath.Join(dir, file), nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		return loadedImage{dir: dir, manifest: m}
	}
	whole, stick, half := built("whole", "raw.zst", "netboot"), built("stick"), built("half", "raw.zst")
	lost := built("lost", "raw.zst", "netboot")
	if err := os.Remove(filepath.Join(lost.dir, image.FileDiskZstd)); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		images   []loadedImage
		standard string
		offered  []string
		err      string
	}{
		"a whole one is":                          {images: []loadedImage{whole}, offered: []string{"whole"}},
		"one without outputs is left out":         {images: []loadedImage{stick, whole}, offered: []string{"whole"}},
		"it is refused as the configured one":     {images: []loadedImage{stick, whole}, standard: "stick", err: "built without output raw.zst, netboot"},
		"it is refused as the only one":           {images: []loadedImage{stick}, err: "built without output raw.zst, netboot"},
		"half of what is needed is not enough":    {images: []loadedImage{half}, err: "built without output netboot"},
		"a file that is listed and gone is found": {images: []loadedImage{lost}, err: "no such file"},
		"two of one name are refused":             {images: []loadedImage{whole, whole}, err: "both named whole"},
	} {
		t.Run(name, func(t *testing.T) {
			dirs, installers, err := provisionable(c.images, c.standard, slog.New(slog.DiscardHandler))
			if c.err != "" {
				if err == nil || !strings.Contains(err.Error(), c.err) {
					t.Fatalf("error is %v, want one with %q", err, c.err)
				}
				if strings.Contains(c.err, "without") && !strings.Contains(hintOf(err), "--output raw.zst,netboot") {
					t.Errorf("hint is %q", hintOf(err))
				}
				return
			}
			want := map[string]string{}
			for _, name := range c.offered {
				want[name] = filepath.Join(root, name+"raw.zst,netboot")
			}
			if err != nil || !maps.Equal(dirs, want) || installers["amd64"] != filepath.Join(root, "wholeraw.zst,netboot", image.FileInstaller) {
				t.Errorf("got %v, %v, %v", dirs, installers, err)
			}
		})
	}
}

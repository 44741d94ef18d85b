package main

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"

	"github.com/sealift/sealift/image"
	"github.com/sealift/sealift/image/manifest"
)

// provisionable returns what the provisioner offers of the images: the
// directories by image name, and the installers by architecture. standard is
// the configured image, or empty. An image that was built without the outputs
// for it still gives reference values, but cannot be installed from here.
func provisionable(images []loadedImage, standard string, log *slog.Logger) (dirs, installers map[string]string, err error) {
	dirs, installers = map[string]string{}, map[string]string{}
	seen := map[string]string{}
	var lacking error
	for _, i := range images {
		name := i.manifest.Name
		if other := seen[name]; other != "" {
			return nil, nil, usage{fmt.Errorf("the images in %s and %s are both named %s: an installer could not tell them apart", other, i.dir, name)}
		}
		seen[name] = i.dir
		if err := i.lacks(); err != nil {
			if name == standard {
				return nil, nil, err
			}
			lacking = errors.Join(lacking, err)
			log.Warn("image cannot be installed over the network", "image", name, "why", err)
			continue
		}
		dirs[name] = i.dir
		if standard == "" || standard == name {
			installers[i.manifest.Arch] = filepath.Join(i.dir, image.FileInstaller)
		}
	}
	if len(dirs) == 0 && lacking != nil {
		return nil, nil, lacking
	}
	return dirs, installers, nil
}

// lacks says why an image cannot be installed over the network. It is nil if
// it can.
func (i *loadedImage) lacks() error {
	var lost []string
	for _, need := range []struct {
		kind, name string
		output     image.Output
	}{
		{manifest.KindDiskZstd, image.FileDiskZstd, image.OutputRawZstd},
		{manifest.KindInstaller, image.FileInstaller, image.OutputNetboot},
	} {
		if _, ok := i.manifest.Artifact(need.kind); !ok {
			lost = append(lost, string(need.output))
			continue
		}
		if _, err := os.Stat(filepath.Join(i.dir, need.name)); err != nil {
			return fmt.Errorf("image %s: %w", i.manifest.Name, err)
		}
	}
	if len(lost) == 0 {
		return nil
	}
	err := fmt.Errorf("image %s in %s was built without output %s, which installing over the network needs", i.manifest.Name, i.dir, strings.Join(lost, ", "))
	return withHint(err, "sealift image build PROFILE --out %s --output raw.zst,netboot", i.dir)
}

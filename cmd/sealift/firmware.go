package main

import (
	"errors"
	"fmt"
	"os"
	"slices"

	"github.com/spf13/cobra"

	"github.com/sealift/sealift/firmware"
	"github.com/sealift/sealift/image/manifest"
)

func newFirmwareCommand(e *env) *cobra.Command {
	return newGroup("firmware", "Know firmware builds by digest, and move fleets from one to another", `
The catalogue lists the firmware builds of each model with what they measure; a
campaign moves machines between builds and is proven by what they measured.`, `
  sealift firmware digest OVMF_CODE-2.0.0.fd`,
		newFirmwareDigestCommand(e),
		newGroup("catalogue", "Keep the list of known firmware builds", `
The catalogue is a YAML file that 'sealift serve' reads when it starts.`, `
  sealift firmware catalogue lint catalogue.yaml`,
			newCatalogueLintCommand(e), newCatalogueAddCommand(e)),
		newCampaignCommand(e))
}

func newFirmwareDigestCommand(e *env) *cobra.Command {
	return &cobra.Command{
		Use:   "digest IMAGE",
		Short: "Compute what a firmware image will measure",
		Long: `Unpacks an edk2 firmware image and prints the size and SHA-256 of each firmware
volume in it, in order. Firmware measures volumes decompressed, so these are the
digests of its EV_EFI_PLATFORM_FIRMWARE_BLOB events, known before any machine
has booted it. A volume that writes into itself before it is measured (OVMF's
first, PEIFV) measures otherwise.

Example:
  sealift firmware digest /usr/share/OVMF/OVMF_CODE_4M.secboot.fd` + exitStatus,
		Args: cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			volumes, err := readVolumes(args[0])
			if err != nil {
				return err
			}
			for _, v := range volumes {
				if err := e.print(v, "%s  %d bytes", v.SHA256, v.Size); err != nil {
					return err
				}
			}
			return nil
		},
	}
}

// maxFirmware bounds a firmware image, bytes. Flash chips are smaller.
const maxFirmware = 256 << 20

func readVolumes(file string) ([]firmware.Volume, error) {
	b, err := readFile(file, maxFirmware)
	if err != nil {
		return nil, fmt.Errorf("read firmware image: %w", err)
	}
	v, err := firmware.Volumes(b)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return v, nil
}

// buildResult is what --json prints of a build in a catalogue.
type buildResult struct {
	Vendor  string `json:"vendor"`
	Product string `json:"product"`
	firmware.Build
}

func printBuild(e *env, m firmware.Model, b firmware.Build) error {
	return e.print(buildResult{m.Vendor, m.Product, b}, "%s %s  %s  %s  %d digests", plain(m.Vendor), plain(m.Product), plain(b.Version), b.Status, len(b.Digests))
}

func newCatalogueLintCommand(e *env) *cobra.Command {
	return &cobra.Command{
		Use:   "lint FILE",
		Short: "Check a catalogue",
		Long: `Checks a catalogue file and prints what it holds.

Example:
  sealift firmware catalogue lint catalogue.yaml` + exitStatus,
		Args: cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			c, err := readCatalogue(args[0])
			if err != nil {
				return err
			}
			for _, m := range c.Models {
				for _, b := range m.Builds {
					if err := printBuild(e, m, b); err != nil {
						return err
					}
				}
			}
			return nil
		},
	}
}

func newCatalogueAddCommand(e *env) *cobra.Command {
	var model firmware.Model
	var build firmware.Build
	var status string
	cmd := &cobra.Command{
		Use:   "add FILE IMAGE",
		Short: "Add a firmware image to a catalogue",
		Long: `Adds a build to the catalogue FILE, which is made if it is not there. The
digests come from the firmware image, not from a machine that booted it.

Example:
  sealift firmware catalogue add catalogue.yaml OVMF_CODE-2.0.0.fd \
    --vendor Sealift --product demo-box --version 2.0.0 --status candidate --unpinned-first 1` + exitStatus,
		Args: cobra.ExactArgs(2),
		RunE: func(_ *cobra.Command, args []string) error {
			build.Status = firmware.Status(status)
			added, err := addToCatalogue(args[0], args[1], model, build)
			if err != nil {
				return err
			}
			return printBuild(e, model, added)
		},
	}
	f := cmd.Flags()
	f.StringVar(&model.Vendor, "vendor", "", "SMBIOS type 1 manufacturer of the model (required)")
	f.StringVar(&model.Product, "product", "", "SMBIOS type 1 product name of the model (required)")
	f.StringVar(&build.Version, "version", "", "version as SMBIOS type 0 shows it (required)")
	f.StringVar(&build.Date, "date", "", "release date")
	f.StringVar(&build.Reason, "reason", "", "why the build has its status")
	f.StringVar(&status, "status", "candidate", "allowed, candidate (only by campaign) or denied")
	f.IntVar(&build.Unpinned, "unpinned-first", 0, "leave out the first N volumes, whose measured digest depends on the machine's configuration")
	required(cmd, "vendor", "product", "version")
	return cmd
}

func readCatalogue(file string) (*firmware.Catalogue, error) {
	b, err := readFile(file, firmware.MaxCatalogue)
	if err != nil {
		return nil, fmt.Errorf("read firmware catalogue: %w", err)
	}
	c, err := firmware.ParseCatalogue(file, b)
	if err != nil {
		return nil, usage{err}
	}
	return c, nil
}

// addToCatalogue adds one build and replaces the file in one step. It returns
// the build with its digests.
func addToCatalogue(file, image string, model firmware.Model, build firmware.Build) (firmware.Build, error) {
	c, err := readCatalogue(file)
	if errors.Is(err, os.ErrNotExist) {
		c, err = &firmware.Catalogue{}, nil
	}
	if err != nil {
		return build, err
	}
	volumes, err := readVolumes(image)
	if err != nil {
		return build, err
	}
	if build.Unpinned < 0 || build.Unpinned >= len(volumes) {
		return build, usage{fmt.Errorf("--unpinned-first %d: %s has %d volumes, and at least one must identify it", build.Unpinned, image, len(volumes))}
	}
	for _, v := range volumes[build.Unpinned:] {
		build.Digests = append(build.Digests, manifest.SHA256(v.SHA256))
		build.SHA384 = append(build.SHA384, v.SHA384)
	}
	i := slices.IndexFunc(c.Models, func(m firmware.Model) bool { return m.Vendor == model.Vendor && m.Product == model.Product })
	if i < 0 {
		c.Models = append(c.Models, model)
		i = len(c.Models) - 1
	}
	c.Models[i].Builds = append(c.Models[i].Builds, build)
	b, err := c.Encode()
	if err != nil {
		return build, usage{err}
	}
	return build, replaceFile(file, b, 0o644)
}

package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/spf13/cobra"

	"github.com/sealift/sealift/firmware"
	"github.com/sealift/sealift/image/manifest"
)

func newFirmwareCommand(e *env) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "firmware",
		Short: "Know firmware builds by digest, and move fleets from one to another",
		Args:  cobra.NoArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newFirmwareDigestCommand(e), newCatalogueCommand(e), newCampaignCommand(e))
	return cmd
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
				if e.json {
					if err := json.NewEncoder(e.out).Encode(v); err != nil {
						return err
					}
					continue
				}
				fmt.Fprintf(e.out, "%s  %d bytes\n", v.SHA256, v.Size)
			}
			return nil
		},
	}
}

func readVolumes(file string) ([]firmware.Volume, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("read firmware image: %w", err)
	}
	v, err := firmware.Volumes(b)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return v, nil
}

func newCatalogueCommand(e *env) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "catalogue",
		Short: "Keep the list of known firmware builds",
		Args:  cobra.NoArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	lint := &cobra.Command{
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
					fmt.Fprintf(e.out, "%s %s  %s  %s  %d digests\n", m.Vendor, m.Product, b.Version, b.Status, len(b.Digests))
				}
			}
			return nil
		},
	}
	var model firmware.Model
	var build firmware.Build
	var status string
	add := &cobra.Command{
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
			return addToCatalogue(args[0], args[1], model, build)
		},
	}
	f := add.Flags()
	f.StringVar(&model.Vendor, "vendor", "", "SMBIOS type 1 manufacturer of the model (required)")
	f.StringVar(&model.Product, "product", "", "SMBIOS type 1 product name of the model (required)")
	f.StringVar(&build.Version, "version", "", "version as SMBIOS type 0 shows it (required)")
	f.StringVar(&build.Date, "date", "", "release date")
	f.StringVar(&build.Reason, "reason", "", "why the build has its status")
	f.StringVar(&status, "status", "candidate", "allowed, candidate (only by campaign) or denied")
	f.IntVar(&build.Unpinned, "unpinned-first", 0, "leave out the first N volumes, whose measured digest depends on the machine's configuration")
	for _, name := range []string{"vendor", "product", "version"} {
		add.MarkFlagRequired(name)
	}
	cmd.AddCommand(lint, add)
	return cmd
}

func readCatalogue(file string) (*firmware.Catalogue, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("read firmware catalogue: %w", err)
	}
	return firmware.ParseCatalogue(file, b)
}

// addToCatalogue adds one build and replaces the file in one step.
func addToCatalogue(file, image string, model firmware.Model, build firmware.Build) error {
	c, err := readCatalogue(file)
	if errors.Is(err, os.ErrNotExist) {
		c, err = &firmware.Catalogue{}, nil
	}
	if err != nil {
		return err
	}
	volumes, err := readVolumes(image)
	if err != nil {
		return err
	}
	if build.Unpinned < 0 || build.Unpinned >= len(volumes) {
		return usage{fmt.Errorf("--unpinned-first %d: %s has %d volumes, and at least one must identify it", build.Unpinned, image, len(volumes))}
	}
	for _, v := range volumes[build.Unpinned:] {
		build.Digests = append(build.Digests, manifest.SHA256(v.SHA256))
	}
	i := slices.IndexFunc(c.Models, func(m firmware.Model) bool { return m.Vendor == model.Vendor && m.Product == model.Product })
	if i < 0 {
		c.Models = append(c.Models, model)
		i = len(c.Models) - 1
	}
	c.Models[i].Builds = append(c.Models[i].Builds, build)
	b, err := c.Encode()
	if err != nil {
		return err
	}
	return replaceFile(file, b, 0o644)
}

// replaceFile writes a file so that readers see the old content or the new.
func replaceFile(file string, b []byte, mode os.FileMode) error {
	tmp, err := os.CreateTemp(filepath.Dir(file), "."+filepath.Base(file)+"-")
	if err != nil {
		return fmt.Errorf("write %s: %w", file, err)
	}
	defer os.Remove(tmp.Name())
	_, err = tmp.Write(b)
	if err := errors.Join(err, tmp.Chmod(mode), tmp.Sync(), tmp.Close()); err != nil {
		return fmt.Errorf("write %s: %w", file, err)
	}
	if err := os.Rename(tmp.Name(), file); err != nil {
		return fmt.Errorf("write %s: %w", file, err)
	}
	return nil
}

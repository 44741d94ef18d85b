package main

import (
	"errors"
	"fmt"

	"github.com/spf13/pflag"

	"github.com/sealift/sealift/image"
)

// addOutputFlag adds --output, which may be given several times or with commas.
func addOutputFlag(f *pflag.FlagSet, to *[]string) {
	var standard []string
	for _, o := range image.DefaultOutputs() {
		standard = append(standard, string(o))
	}
	f.StringSliceVar(to, "output", standard, "`forms` of the image: raw, raw.zst, qcow2, iso, netboot")
}

// parseOutputs reads the values of --output.
func parseOutputs(names []string) ([]image.Output, error) {
	all, err := image.ParseOutputs(names)
	if err != nil {
		return nil, withHint(usage{fmt.Errorf("--output: %w", err)}, "sealift image build --help")
	}
	return all, nil
}

// busy says what to do about a build that is in another one's way.
func busy(err error) error {
	if errors.Is(err, image.ErrBusy) {
		return withHint(err, "wait until it is done, or choose another --out")
	}
	return err
}

package image

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"github.com/sealift/sealift/image/efivar"
	prediction "github.com/sealift/sealift/image/predict"
	"github.com/sealift/sealift/image/sign"
)

// Names of the files that `sealift image test` puts beside a manifest: a
// statement of what the image measured when it was booted. A build removes
// those of the image that it replaces.
const (
	FileTest       = "test.intoto.json"
	FileTestBundle = FileTest + sign.BundleSuffix
)

// references predicts what each way of booting the image measures. It reads
// the UKIs as they were written, and so after both are.
func (b *builder) references(context.Context) error {
	disk, err := os.ReadFile(filepath.Join(b.out.dir, FileUKI))
	if err != nil {
		return fmt.Errorf("reference values: %w", err)
	}
	b.m.Boots, err = prediction.Boots(prediction.Input{UKI: disk, Installer: b.installerUKI, Enrolments: []efivar.Enrolment{b.Enrolment}})
	return err
}

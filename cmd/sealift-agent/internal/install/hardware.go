package install

import (
	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/profiles"
)

// CheckHardware reports a machine that the image is not for. s is nil, or
// empty, if the machine does not say what it is; then only an image for any
// machine is for it. The texts are the machine's own claim: the check keeps an
// image from the wrong box, not from a box that lies.
func CheckHardware(want []profiles.Hardware, s *attest.SMBIOS) error {
	if s == nil {
		s = &attest.SMBIOS{}
	}
	return profiles.CheckHardware(want, profiles.Hardware{
		Manufacturer:      s.Manufacturer,
		Product:           s.Product,
		Version:           s.Version,
		BoardManufacturer: s.BoardManufacturer,
		BoardProduct:      s.BoardProduct,
		BIOSVendor:        s.BIOSVendor,
	})
}

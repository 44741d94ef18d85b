package profiles

import "strings"

// VariantDebug is the VARIANT_ID (os-release(5)) of images marked debug. Other
// images have none.
const VariantDebug = "debug"

// MarkedDebug reports whether an os-release(5) is that of an image marked debug.
func MarkedDebug(osRelease []byte) bool {
	marked := false
	for line := range strings.Lines(string(osRelease)) {
		if value, ok := strings.CutPrefix(strings.TrimSpace(line), "VARIANT_ID="); ok {
			marked = strings.Trim(value, `"'`) == VariantDebug // the last one counts
		}
	}
	return marked
}

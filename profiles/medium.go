package profiles

// An installation medium, as the builder writes it and the installer finds it:
// an ISO 9660 volume with these files in its root directory. The label only
// finds it; what is installed from it has to be signed like everything else.
const (
	MediumLabel    = "SEALIFT"
	MediumManifest = "manifest.json"
	MediumBundle   = "manifest.json.sigstore.json"
	MediumDisk     = "disk.raw.zst"
	// MediumRecords is room for install records as JSON lines. It is full of
	// empty lines, which the installer writes over in place.
	MediumRecords = "records.jsonl"
	// MediumRecordsSize is the length of MediumRecords, bytes.
	MediumRecordsSize = 1 << 20
)

package sbom

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	spdxjson "github.com/spdx/tools-golang/json"
	"github.com/spdx/tools-golang/spdx/v2/common"
	spdx "github.com/spdx/tools-golang/spdx/v2/v2_3"
)

// namespace is the start of the address that names an SPDX document. Nothing
// is served there; a namespace must only be unique.
const namespace = "https://sealift.dev/spdx/"

// noAssertion is what SPDX wants for what is not known.
const noAssertion = "NOASSERTION"

const imageID = "Image"

// SPDX returns the inventory as an SPDX 2.3 document in JSON.
//
// The image CONTAINS its files and packages. A file is EXPANDED_FROM_ARCHIVE
// its Debian package, or GENERATED_FROM the program or container image that it
// is; a program DEPENDS_ON its modules.
func (v *Inventory) SPDX() ([]byte, error) {
	d := &spdx.Document{
		SPDXVersion: spdx.Version, DataLicense: spdx.DataLicense, SPDXIdentifier: "DOCUMENT",
		DocumentName:      v.Name + " " + v.Version,
		DocumentNamespace: namespace + escape(v.Name) + "-" + escape(v.Version) + "-" + v.Digest.String(),
		CreationInfo: &spdx.CreationInfo{
			Created:  v.Epoch.Format(time.RFC3339),
			Creators: []common.Creator{{CreatorType: "Tool", Creator: "sealift-" + v.toolVersion()}},
		},
	}
	d.Packages = append(d.Packages, v.spdxImage())
	relate(d, "DOCUMENT", common.TypeRelationshipDescribe, imageID)
	texts := map[string]string{}
	for i := range v.Components {
		c := &v.Components[i]
		d.Packages = append(d.Packages, spdxPackage(c))
		if c.Kind != KindModule {
			relate(d, imageID, common.TypeRelationshipContains, c.ID)
		}
		for _, dep := range c.DependsOn {
			relate(d, c.ID, common.TypeRelationshipDependsOn, dep)
		}
		for _, l := range c.Licenses {
			for id, name := range l.Refs {
				texts[id] = fmt.Sprintf("%s: see the copyright file of the Debian package %s %s.", name, c.Name, c.Version)
			}
		}
	}
	for i := range v.Files {
		f := &v.Files[i]
		id := "File-" + identifier(f.Path)
		d.Files = append(d.Files, spdxFile(f, id))
		relate(d, imageID, common.TypeRelationshipContains, id)
		if c, ok := v.Component(f.From); ok && c.Kind == KindDebian {
			relate(d, id, common.TypeRelationshipExpandedFromArchive, f.From)
		} else if ok {
			relate(d, id, common.TypeRelationshipGeneratedFrom, f.From)
		}
	}
	for _, id := range slices.Sorted(maps.Keys(texts)) {
		d.OtherLicenses = append(d.OtherLicenses, &spdx.OtherLicense{LicenseIdentifier: id, LicenseName: strings.SplitN(texts[id], ":", 2)[0], ExtractedText: texts[id]})
	}
	var b bytes.Buffer
	if err := spdxjson.Write(d, &b, spdxjson.Indent(" "), spdxjson.EscapeHTML(false)); err != nil {
		return nil, fmt.Errorf("write SPDX document: %w", err)
	}
	if b.Len() > MaxSize {
		return nil, fmt.Errorf("write SPDX document: %d bytes, at most %d allowed", b.Len(), MaxSize)
	}
	return b.Bytes(), nil
}

func (v *Inventory) toolVersion() string {
	if v.Tool == "" {
		return "devel"
	}
	return v.Tool
}

func relate(d *spdx.Document, a, relationship, b string) {
	d.Relationships = append(d.Relationships, &spdx.Relationship{
		RefA: common.MakeDocElementID("", a), RefB: common.MakeDocElementID("", b), Relationship: relationship,
	})
}

func (v *Inventory) spdxImage() *spdx.Package {
	return &spdx.Package{
		PackageName: v.Name, PackageVersion: v.Version, PackageSPDXIdentifier: imageID,
		PackageDownloadLocation: noAssertion, PackageLicenseConcluded: noAssertion, PackageLicenseDeclared: noAssertion,
		PackageCopyrightText: noAssertion, PrimaryPackagePurpose: "OPERATING_SYSTEM",
		PackageChecksums:            []common.Checksum{{Algorithm: common.SHA256, Value: v.Digest.String()}},
		FilesAnalyzed:               true,
		PackageLicenseInfoFromFiles: []string{noAssertion},
		PackageVerificationCode:     &common.PackageVerificationCode{Value: v.verificationCode()},
		PackageComment:              "The checksum is that of the raw disk image.",
	}
}

// spdxPurposes are the primary purposes of components (SPDX 2.3, 7.24).
var spdxPurposes = map[string]string{KindDebian: "ARCHIVE", KindProgram: "APPLICATION", KindModule: "LIBRARY", KindImage: "CONTAINER"}

func spdxPackage(c *Component) *spdx.Package {
	p := &spdx.Package{
		PackageName: c.Name, PackageVersion: c.Version, PackageSPDXIdentifier: common.ElementID(c.ID),
		PackageDownloadLocation: noAssertion, PackageHomePage: c.Home,
		PackageLicenseConcluded: noAssertion, PackageLicenseDeclared: noAssertion, PackageCopyrightText: noAssertion,
		PrimaryPackagePurpose: spdxPurposes[c.Kind],
		PackageExternalReferences: []*spdx.PackageExternalReference{{
			Category: common.CategoryPackageManager, RefType: common.TypePackageManagerPURL, Locator: c.PURL,
		}},
	}
	if c.URL != "" {
		p.PackageDownloadLocation = c.URL
	}
	if len(c.Licenses) > 0 {
		p.PackageLicenseDeclared = declared(c.Licenses)
	}
	if !c.SHA256.IsZero() {
		p.PackageChecksums = []common.Checksum{{Algorithm: common.SHA256, Value: c.SHA256.String()}}
	} else if sum, ok := moduleSum(c.Sum); ok {
		p.PackageChecksums = []common.Checksum{{Algorithm: common.SHA256, Value: sum}}
		p.PackageComment = "The checksum is the module's h1: digest as in go.sum, which is over the files of its archive."
	}
	switch c.Kind {
	case KindDebian:
		p.PackageSupplier = &common.Supplier{SupplierType: "Organization", Supplier: supplier(c.Vendor)}
		p.PackageSourceInfo = fmt.Sprintf("built from source package %s %s", c.Source, c.SourceVersion)
	case KindProgram:
		p.PackageSourceInfo = fmt.Sprintf("Go package %s, built with %s", c.Package, c.GoVersion)
	}
	return p
}

// supplier is the name of a distribution, for people.
func supplier(vendor string) string {
	if vendor == "debian" {
		return "Debian"
	}
	return vendor
}

func spdxFile(f *File, id string) *spdx.File {
	out := &spdx.File{
		FileName: "./" + f.Path, FileSPDXIdentifier: common.ElementID(id),
		Checksums: []common.Checksum{
			{Algorithm: common.SHA1, Value: hex.EncodeToString(f.SHA1[:])},
			{Algorithm: common.SHA256, Value: f.SHA256.String()},
		},
		LicenseConcluded: noAssertion, LicenseInfoInFiles: []string{noAssertion}, FileCopyrightText: noAssertion,
	}
	if f.Executable {
		out.FileTypes = []string{"BINARY"}
	}
	return out
}

// moduleSum returns the SHA-256 inside an h1: digest of go.sum, in hex.
func moduleSum(sum string) (string, bool) {
	b64, ok := strings.CutPrefix(sum, "h1:")
	if !ok {
		return "", false
	}
	b, err := base64.StdEncoding.DecodeString(b64)
	if err != nil || len(b) != 32 {
		return "", false
	}
	return hex.EncodeToString(b), true
}

package sbom

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"strings"
	"time"

	cdx "github.com/CycloneDX/cyclonedx-go"
)

// CycloneDX returns the inventory as a CycloneDX 1.6 document in JSON. Files
// are nested into the component that they come from; those that the builder
// made stand beside the components.
func (v *Inventory) CycloneDX() ([]byte, error) {
	bom := cdx.NewBOM()
	bom.SpecVersion = cdx.SpecVersion1_6
	bom.JSONSchema = "http://cyclonedx.org/schema/bom-1.6.schema.json"
	bom.SerialNumber = "urn:uuid:" + v.uuid()
	bom.Metadata = &cdx.Metadata{
		Timestamp:  v.Epoch.Format(time.RFC3339),
		Lifecycles: &[]cdx.Lifecycle{{Phase: cdx.LifecyclePhaseBuild}},
		Tools: &cdx.ToolsChoice{Components: &[]cdx.Component{{
			Type: cdx.ComponentTypeApplication, Name: "sealift", Version: v.toolVersion(),
		}}},
		Component: &cdx.Component{
			BOMRef: imageID, Type: cdx.ComponentTypeOS, Name: v.Name, Version: v.Version,
			Hashes:     &[]cdx.Hash{{Algorithm: cdx.HashAlgoSHA256, Value: v.Digest.String()}},
			Properties: &[]cdx.Property{{Name: "sealift:arch", Value: v.Arch}},
		},
	}
	files := map[string][]cdx.Component{}
	for i := range v.Files {
		f := &v.Files[i]
		files[f.From] = append(files[f.From], cdxFile(f))
	}
	var components []cdx.Component
	image := cdx.Dependency{Ref: imageID}
	var direct []string
	var dependencies []cdx.Dependency
	for i := range v.Components {
		c := &v.Components[i]
		n := cdxComponent(c)
		if nested := files[c.ID]; len(nested) > 0 {
			n.Components = &nested
		}
		components = append(components, n)
		if c.Kind != KindModule {
			direct = append(direct, c.ID)
		}
		dep := cdx.Dependency{Ref: c.ID}
		if len(c.DependsOn) > 0 {
			dep.Dependencies = &c.DependsOn
		}
		dependencies = append(dependencies, dep)
	}
	components = append(components, files[""]...)
	if len(direct) > 0 {
		image.Dependencies = &direct
	}
	dependencies = append([]cdx.Dependency{image}, dependencies...)
	bom.Components, bom.Dependencies = &components, &dependencies
	var b bytes.Buffer
	e := cdx.NewBOMEncoder(&b, cdx.BOMFileFormatJSON).SetPretty(true).SetEscapeHTML(false)
	if err := e.Encode(bom); err != nil {
		return nil, fmt.Errorf("write CycloneDX document: %w", err)
	}
	if b.Len() > MaxSize {
		return nil, fmt.Errorf("write CycloneDX document: %d bytes, at most %d allowed", b.Len(), MaxSize)
	}
	return b.Bytes(), nil
}

func cdxComponent(c *Component) cdx.Component {
	n := cdx.Component{BOMRef: c.ID, Type: cdx.ComponentTypeLibrary, Name: c.Name, Version: c.Version, PackageURL: c.PURL}
	var properties []cdx.Property
	var references []cdx.ExternalReference
	property := func(name, value string) {
		if value != "" {
			properties = append(properties, cdx.Property{Name: "sealift:" + name, Value: value})
		}
	}
	switch c.Kind {
	case KindDebian:
		n.Supplier = &cdx.OrganizationalEntity{Name: supplier(c.Vendor)}
		if strings.HasPrefix(c.Name, "linux-image-") {
			n.Type = cdx.ComponentTypeOS
		}
		property("source", c.Source)
		property("sourceVersion", c.SourceVersion)
	case KindProgram:
		n.Type = cdx.ComponentTypeApplication
		property("package", c.Package)
		property("go", c.GoVersion)
	case KindImage:
		n.Type = cdx.ComponentTypeContainer
	}
	if !c.SHA256.IsZero() {
		n.Hashes = &[]cdx.Hash{{Algorithm: cdx.HashAlgoSHA256, Value: c.SHA256.String()}}
	} else if _, ok := moduleSum(c.Sum); ok {
		// Not a digest of one file, so not among the hashes.
		property("goSum", c.Sum)
	}
	if len(c.Licenses) > 0 {
		n.Licenses = &cdx.Licenses{{Expression: declared(c.Licenses)}}
	}
	if c.URL != "" {
		references = append(references, cdx.ExternalReference{Type: cdx.ERTypeDistribution, URL: c.URL})
	}
	if c.Home != "" {
		references = append(references, cdx.ExternalReference{Type: cdx.ERTypeWebsite, URL: c.Home})
	}
	if len(properties) > 0 {
		n.Properties = &properties
	}
	if len(references) > 0 {
		n.ExternalReferences = &references
	}
	return n
}

func cdxFile(f *File) cdx.Component {
	n := cdx.Component{
		BOMRef: "File-" + identifier(f.Path), Type: cdx.ComponentTypeFile, Name: f.Path,
		Hashes: &[]cdx.Hash{
			{Algorithm: cdx.HashAlgoSHA1, Value: hex.EncodeToString(f.SHA1[:])},
			{Algorithm: cdx.HashAlgoSHA256, Value: f.SHA256.String()},
		},
	}
	if f.Executable {
		n.Properties = &[]cdx.Property{{Name: "sealift:executable", Value: "true"}}
	}
	return n
}

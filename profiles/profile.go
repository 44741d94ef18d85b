// Package profiles holds what a fleet declares: the Profile, its strict
// parser, its lock file, and the distros as data. It also holds AgentConfig,
// the part of a profile that is baked into an image for the agent.
package profiles

// APIVersion and Kind are the first two fields of every profile.
const (
	APIVersion = "sealift.dev/v1"
	Kind       = "Profile"
)

// Profile declares one image. Relative paths are relative to the profile's file.
type Profile struct {
	APIVersion string `yaml:"apiVersion"`
	Kind       string `yaml:"kind"`
	Name       string `yaml:"name"`    // RFC 1123 label, at most 40 characters
	Version    string `yaml:"version"` // of the image: letters, digits, dot, dash
	Arch       string `yaml:"arch"`    // amd64, arm64
	Base       string `yaml:"base"`    // minimal

	Debian     Debian     `yaml:"debian"`
	Kernel     Kernel     `yaml:"kernel"`
	Packages   []string   `yaml:"packages"` // Debian packages beside those of the base and the distro
	Kubernetes Kubernetes `yaml:"kubernetes"`
	Preload    Preload    `yaml:"preload"`
	Disk       Disk       `yaml:"disk"`
	Attest     Attest     `yaml:"attest"`
	Install    Install    `yaml:"install"`
	Debug      bool       `yaml:"debug"` // verbose console; marks the image as not for production
}

// Debian says where packages come from.
type Debian struct {
	Suite  string `yaml:"suite"`  // bookworm
	Mirror string `yaml:"mirror"` // optional
}

// Kernel chooses the kernel package and the modules that go into the image.
type Kernel struct {
	Package string   `yaml:"package"` // e.g. linux-image-cloud-amd64
	Initrd  []string `yaml:"initrd"`  // modules the initramfs loads; dependencies are resolved
	Root    []string `yaml:"root"`    // modules loaded after the root file system is mounted
	Cmdline []string `yaml:"cmdline"` // extra kernel parameters
}

// Kubernetes chooses the distro and configures the node.
type Kubernetes struct {
	Distro  string `yaml:"distro"`  // kubernetes, k3s, k0s, rke2
	Version string `yaml:"version"` // v1.34.4
	// Source is where the distro's programs come from: modules or release.
	// Optional; modules if the version can be built from them, else release.
	Source string `yaml:"source"`
	// Mirror takes the place of scheme and host of the vendor's server:
	// https://mirror.example has the paths of github.com or dl.k8s.io. Optional.
	Mirror        string `yaml:"mirror"`
	PodCIDR       string `yaml:"podCIDR"` // of this node's bridge network
	ClusterDNS    string `yaml:"clusterDNS"`
	ClusterDomain string `yaml:"clusterDomain"`
}

// Preload lists what must be there without a registry.
type Preload struct {
	Images []PreloadImage `yaml:"images"`
	// Exclude leaves out images of the distro's own list: patterns of whole
	// references in which * stands for anything, e.g. *traefik*.
	Exclude []string `yaml:"exclude"`
}

// PreloadImage is one container image. At most one source is set; with none
// the image is pulled from the registry that its name says. What a tag or a
// layout stands for is decided when the profile is locked.
type PreloadImage struct {
	Name    string `yaml:"name"`    // full reference, e.g. docker.io/sealift/hello:v1
	From    string `yaml:"from"`    // reference to pull instead of Name, with a tag or a digest
	Archive string `yaml:"archive"` // OCI layout in a tar archive
	Layout  string `yaml:"layout"`  // directory of an OCI layout
	Go      string `yaml:"go"`      // directory of a Go main package, built static as the image's only file
}

// Pulled reports whether the image comes from a registry.
func (i PreloadImage) Pulled() bool { return i.Archive == "" && i.Layout == "" && i.Go == "" }

// Disk declares the layout and its budgets. Sizes are in MiB.
type Disk struct {
	ESP    int `yaml:"esp"`    // at least 64
	Slot   int `yaml:"slot"`   // root file system, each of two
	Verity int `yaml:"verity"` // hash tree, each of two
	UKI    int `yaml:"uki"`    // budget of one UKI: a larger one fails the build
}

// Attest names the attestation service.
type Attest struct {
	URL string `yaml:"url"` // https://host:port of the node API
}

// Install says what the installer may do.
type Install struct {
	MinDisk int  `yaml:"minDisk"` // MiB; smaller disks are never chosen
	Wipe    bool `yaml:"wipe"`    // write over a disk that holds unknown data
}

// AgentConfigPath is where the agent finds its AgentConfig in the initramfs.
const AgentConfigPath = "/etc/sealift/agent.json"

// Modes of the agent in an initramfs.
const (
	ModeBoot    = "boot"
	ModeInstall = "install"
)

// AgentConfig is what an image's agent needs to know. It is measured with the
// initramfs, so it is as trusted as the image, and holds no secret.
type AgentConfig struct {
	Mode    string   `json:"mode"`
	Image   string   `json:"image"` // "name version"
	Debug   bool     `json:"debug"`
	Modules []string `json:"modules"` // paths in the initramfs, in load order

	// ModeBoot
	AttestURL  string `json:"attestURL,omitempty"`
	AttestCA   string `json:"attestCA,omitempty"`   // PEM
	ReleaseKey string `json:"releaseKey,omitempty"` // PEM public key that signs releases
	PCRKey     string `json:"pcrKey,omitempty"`     // PEM public key of .pcrsig

	// ModeInstall
	ImageKey string `json:"imageKey,omitempty"` // PEM public key that signs manifests
	MinDisk  int64  `json:"minDisk,omitempty"`  // bytes
	Wipe     bool   `json:"wipe,omitempty"`
}

// Paths in images that the builder writes and the agent reads.
const (
	// SecureBootDir is in the installer's initramfs: PK.auth, KEK.auth, db.auth.
	SecureBootDir = "/etc/sealift/secureboot"
	// RootModulesPath is in the root file system: module paths, one a line, in load order.
	RootModulesPath = "/usr/lib/sealift/modules"
	// RootAgentPath is the agent in the root file system; /sbin/init links to it.
	RootAgentPath = "/usr/lib/sealift/agent"
	// ImagesDir is in the root file system: OCI layout archives to import.
	ImagesDir = "/usr/share/sealift/images"
	// PCRSignaturePath is where systemd-stub leaves .pcrsig for the initramfs.
	PCRSignaturePath = "/.extra/tpm2-pcr-signature.json"
)

// Kernel parameters that the builder writes into a UKI for the agent.
const (
	ParamRootHash = "sealift.roothash" // dm-verity root hash, hex
	// ParamOnFatal says what the agent does after a fatal error: reboot,
	// poweroff or halt. It is heeded only in images marked debug.
	ParamOnFatal = "sealift.onfatal"
)

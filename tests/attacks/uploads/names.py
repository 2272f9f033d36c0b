"""Names that reach elsewhere, that two systems read differently, or that hide what a file is."""

from tests.attacks.corpus import name, refused

name("the folder above", "../evil", says="'..'")
name("two folders above, from within", "a/../../evil", says="'..'")
name("the folder itself", "./evil", says="'.'")
name("an absolute path", "/etc/passwd", says="begins or ends with /")
name("a home folder of root", "/root/.ssh/authorized_keys", says="begins or ends with /")
name("a folder and no file", "weights/", says="begins or ends with /")
name("an empty segment", "a//b", says="has // in it")
name("a backslash", "a\\b", says="in it")
name("the folder above, by backslashes", "..\\..\\evil", says="in it")
name("a drive", "C:/windows/win.ini", says="':'")
name("a stream of NTFS", "model.bin:hidden", says="':'")
name("a machine on the network", "\\\\host\\share\\x", says="in it")
name(
    "a NUL",
    "model.bin\0.safetensors",
    says="U+0000",
    json=refused("U+0000", "nul_character"),
)
name("a line break", "a\nb", says="U+000A")
name(
    "a carriage return",
    "a\rSet-Cookie: x=y",
    says="U+000D",
    form=refused("malformed", "invalid"),
)
name("an escape of the terminal", "a\x1b[2Jb", says="U+001B")
name("a deletion", "a\x7fb", says="U+007F")
name("right to left", "model\u202esrotnesnetefas.exe", says="U+202E")
name("an isolate", "model\u2066.txt", says="U+2066")
name("a joiner without width", "model\u200d.txt", says="U+200D")
name("a space without width", "model\u200b.txt", says="U+200B")
name("a byte order mark", "\ufeffmodel.txt", says="U+FEFF")
name("a line separator", "a\u2028b", says="U+2028")
name("a tag character", "a\U000e0041b", says="U+E0041")
name("a private character", "a\ue000b", says="U+E000")
name("another normal form", "e\u0301.txt", says="normal form C")
name("a device", "con", says="device name")
name("a device with an ending", "models/NUL.safetensors", says="device name")
name("a device by superscript", "COM¹.txt", says="device name")
name("a printer as a folder", "lpt1/weights.bin", says="device name")
name("a dot at the end", "model.safetensors.", says="ends with a dot")
name("a space at the end", "model.safetensors ", says="space")
name("a folder that ends with a space", "a /b", says="space")
name("a space at the beginning", " model", says="space")
name("nothing but spaces", "   ", says="space")
name("a wildcard", "*.py", says="'*'")
name("a pipe", "a|sh", says="'|'")
name("a redirection", "a>b", says="'>'")
name("256 bytes", "a" * 256, says="longer than 255")
name("256 bytes in 86 characters", "数" * 86, says="longer than 255")
name("a path of 2 kB", "a/" * 1000 + "b", says="longer than 1024")
name("folders without end", "a/" * 40 + "b", says="deeper than 32")
name("a hook of git", ".git/hooks/post-checkout", says="git's own")
name("a hook of git in capitals", ".GIT/config", says="git's own")
name("two in case", "README.md", "readme.md", says="only in case")
name("two folders in case", "a/b", "A/B", says="only in case")
name("two in German", "straße", "STRASSE", says="only in case")
name("two in ligatures", "ﬁle", "file", says="only in case")
name("two in width", "\uff4dodel", "model", says="only in case")
name("two in Kelvin", "K", "k", says="only in case")
name("a file that is a folder", "a", "a/b", says="which is a file")
name("a file that is a folder in capitals", "A/b/c", "a/b", says="which is a file")

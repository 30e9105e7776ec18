"""Other C and Cython projects build on the installed wheel: by CMake, by cimport, by capsule."""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
import tarfile
import zipfile
from pathlib import Path

import installed
import pytest
from c_drivers import HERE, KERNELS, compiled
from c_drivers import run as run_program
from installed import ROOT, Environment, run

import crystalline
from crystalline._native import available_isas
from crystalline.errors import UsageError

HEADERS = ("kernels.h", "parallel.h")
ISAS = [None, *available_isas()]
WARNINGS = ["-Wall", "-Wextra", "-pedantic", "-Wconversion", "-Werror"]


@pytest.fixture(scope="session")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return installed.source_archive(tmp_path_factory.mktemp("sdist"))


@pytest.fixture(scope="session")
def sources(archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sources")
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")
    (inside,) = folder.iterdir()
    return inside


@pytest.fixture(scope="session")
def wheel(sources: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return installed.wheel(sources, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="session")
def user(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    made = installed.environment(tmp_path_factory.mktemp("user") / "venv")
    made.install(wheel)
    return made


def needs(*programs: str) -> None:
    for program in programs:
        if not shutil.which(program):
            pytest.skip(f"there is no {program} here")


def test_the_source_archive_has_all_that_the_build_reads(archive: Path) -> None:
    with tarfile.open(archive) as tar:
        names = {name.split("/", 1)[1] for name in tar.getnames()}
    tracked = {str(p.relative_to(ROOT)) for p in (ROOT / "src").rglob("*.[chp]*")}
    tracked = {name for name in tracked if not name.endswith((".pyc", ".so"))}
    tracked |= {"CMakeLists.txt", "cmake/crystallineConfig.cmake.in", "pyproject.toml"}
    assert names >= tracked


def test_one_wheel_has_every_file_once(wheel: Path) -> None:
    assert re.fullmatch(r"crystalline-[0-9.]+-cp311-abi3-\w+\.whl", wheel.name)
    names = zipfile.ZipFile(wheel).namelist()
    ours = [name.removeprefix("crystalline/") for name in names]
    assert {n for n in ours if n.endswith((".h", ".a", ".c", ".pyx", ".pxi", ".pxd"))} == {
        "include/crystalline/kernels.h", "include/crystalline/parallel.h", "kernels.pxd",
        "lib/libcrystalline_kernels.a", "lib/libcrystalline_parallel.a",
    }  # fmt: skip
    assert "lib/cmake/crystalline/crystallineConfig.cmake" in ours
    assert not [name for name in names if "_kernels" in name.split("/")]


@pytest.mark.parametrize("language", ["c11", "c17", "c++17", "c++20"])
@pytest.mark.parametrize("header", HEADERS)
def test_a_header_stands_alone(header: str, language: str, user: Environment) -> None:
    compiler = "g++" if "++" in language else "gcc"
    needs(compiler)
    include = user.evaluate("crystalline.get_include()")
    kind = "c++" if "++" in language else "c"
    read = subprocess.run(
        [compiler, f"-std={language}", "-x", kind, *WARNINGS, "-fsyntax-only", f"-I{include}", "-"],
        input=f"#include <crystalline/{header}>\n", capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert not read.returncode, read.stderr


@pytest.mark.parametrize("header", HEADERS)
def test_a_header_stays_short(header: str) -> None:
    lines = (KERNELS / "include/crystalline" / header).read_text().splitlines()
    assert len(lines) < 400


def declarations(text: str) -> list[str]:
    """Functions and table fields, sorted, each on one line with single spaces."""
    text = re.sub(r"/\*.*?\*/", " ", text, flags=re.S)
    text = re.sub(r"^#.*$|\{.*?\}", " ", text, flags=re.M)
    text = re.sub(r"\b(CRY_API|static inline|noexcept nogil)\b", " ", text)
    text = re.sub(r"\s+", " ", text).replace("(void)", "()")
    kind = r"(?:const )?\w+"
    found = re.findall(rf"{kind} \*?cry_\w+\([^()]*\)|{kind} \(\*\w+\)\([^()]*\)", text)
    return sorted(re.sub(r" (\*?)cry_", r" \1cry_", one) for one in found)


def fields(text: str, name: str) -> list[str]:
    """The members of a struct, in order."""
    text = re.sub(r"/\*.*?\*/", " ", text, flags=re.S)
    inside = re.search(rf"typedef struct {name} \{{(.*?)\}} {name};", text, re.S)
    assert inside
    return members(inside[1])


def members(text: str) -> list[str]:
    found = re.findall(r"\(\*(\w+)\)\([^)]*\)|(\w+)(?:\[\w+\])?(?=\s*(?:[,;]|$))", text, re.M)
    return [a or b for a, b in found]


def test_the_pxd_declares_what_the_headers_declare() -> None:
    headers = "".join((KERNELS / "include/crystalline" / h).read_text() for h in HEADERS)
    pxd = (ROOT / "src/crystalline/kernels.pxd").read_text()
    declared = declarations(headers)
    assert len(declared) >= headers.count("\nCRY_API") + headers.count("(*") > 50
    assert pxd.count("noexcept nogil") == pxd.count("(*")  # the block's nogil does not reach fields
    assert declarations(pxd) == declared
    structs = re.findall(r"typedef struct (\w+) \{", headers)
    assert {"cry_kernels", "cry_team", "cry_adamw"} <= set(structs)
    for name in structs:
        inside = re.search(rf"ctypedef struct {name}:\n((?: {{8}}.*\n)+)", pxd)
        assert inside, name
        told = inside[1].replace(" noexcept nogil", "")
        assert members(told) == fields(headers, name), name
    words = set(re.findall(r"\bCRY_[A-Z_]+(?=[,\s=])", headers)) - {"CRY_API"}
    assert words == set(re.findall(r"\bCRY_[A-Z_]+\b", pxd))


def test_the_serial_library_needs_no_threads_and_no_memory(user: Environment) -> None:
    needs("nm")
    library = user.packages / "crystalline/lib/libcrystalline_kernels.a"
    undefined = set(re.findall(r" U (\w+)", run("nm", library)))
    defined = set(re.findall(r" [A-TV-Z] (\w+)", run("nm", library)))
    assert {"cry_kernels_for", "cry_kernels_portable"} <= defined
    compilers = {"__cpu_model", "__cpu_features2", "__cpu_indicator_init", "__stack_chk_fail"}
    compilers |= {"_GLOBAL_OFFSET_TABLE_"}
    assert undefined - defined <= {"memcpy", "memset", "memmove", "strcmp"} | compilers


def has_all(include: str, package: str) -> bool:
    headers = [Path(include) / "crystalline" / header for header in HEADERS]
    return all(p.is_file() for p in [*headers, Path(package) / "crystallineConfig.cmake"])


BOTH = "crystalline.get_include(), crystalline.get_cmake_dir(), sep='|'"


def test_the_folders_of_this_installation() -> None:
    assert has_all(crystalline.get_include(), crystalline.get_cmake_dir())


def test_the_folders_of_an_installed_wheel(user: Environment) -> None:
    include, package = user.evaluate(BOTH).split("|")
    assert has_all(include, package)
    assert include.startswith(str(user.packages))
    assert not has_all(include, include)


def test_the_folders_of_an_editable_installation(
    wheel: Path, sources: Path, tmp_path: Path
) -> None:
    editable = installed.environment(tmp_path / "venv")
    editable.install(sources, installed.BUILD_IN, "-Ceditable.rebuild=false", "--editable")
    include, package = editable.evaluate(BOTH).split("|")
    assert has_all(include, package)
    assert editable.evaluate("crystalline.__file__").startswith(str(sources))


def test_a_c_program_by_cmake(user: Environment, tmp_path: Path) -> None:
    pytest.importorskip("cmake", reason="the extra `test` brings CMake")
    source = shutil.copytree(ROOT / "examples/embed_c", tmp_path / "embed_c")
    build = tmp_path / "build"
    run(
        user.python, "-m", "cmake", "-S", source, "-B", build, "-DCMAKE_BUILD_TYPE=Release",
        f"-DCMAKE_C_FLAGS={' '.join(WARNINGS)}",
        "-Dcrystalline_DIR=" + user.evaluate("crystalline.get_cmake_dir()"),
    )  # fmt: skip
    run(user.python, "-m", "cmake", "--build", build)
    told = run(build / "bigram", source / "bigram.c")
    assert "1 and 3 threads: the same bits" in told
    told = run(build / "tables")
    assert told.count("the same bits") == len(available_isas())
    assert "pthread" not in run("readelf", "-d", build / "tables")


def test_a_cython_extension_by_cimport(user: Environment, tmp_path: Path) -> None:
    pytest.importorskip("cython_cmake", reason="the extra `test` brings it")
    user.install(shutil.copytree(ROOT / "examples/embed_cython", tmp_path / "embed_cython"))
    print(run(user.python, HERE / "embedded.py", cwd=tmp_path))
    alone = tmp_path / "alone"
    alone.mkdir()
    (module,) = user.packages.glob("nearest.*.so")
    shutil.copy(module, alone)
    path = f"import sys; sys.path.insert(0, {str(alone)!r})"
    loaded = run(user.python, "-I", "-S", "-c", f"{path}; import nearest; print(*sys.modules)")
    assert "nearest" in loaded
    assert "crystalline" not in loaded
    needs("nm")
    for name in ("nearest", "unlinked"):
        (module,) = user.packages.glob(f"{name}.*.so")
        assert "cry_" not in run("nm", "-D", "--defined-only", module)


def test_statuses_of_the_team_functions(user: Environment, tmp_path: Path) -> None:
    needs("gcc")
    home = user.packages / "crystalline"
    program = tmp_path / "statuses"
    run(
        "gcc", "-std=c11", *WARNINGS, f"-I{home}/include", HERE / "c/statuses.c", f"-L{home}/lib",
        "-lcrystalline_parallel", "-lcrystalline_kernels", "-pthread", "-o", program,
    )  # fmt: skip
    assert run(program).splitlines()[-1] == "done"


def pointer(capsule: object, name: bytes = b"crystalline.cry_kernels") -> int:
    get = ctypes.pythonapi.PyCapsule_GetPointer
    get.restype, get.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    return int(get(capsule, name))


@pytest.mark.parametrize("isa", ISAS)
def test_a_capsule_holds_the_table(isa: str | None) -> None:
    header = (KERNELS / "include/crystalline/kernels.h").read_text()
    at = pointer(crystalline.kernel_table(isa))
    abi, size = ctypes.cast(at, ctypes.POINTER(ctypes.c_int64 * 2))[0]
    assert abi == int(re.findall(r"#define CRY_KERNELS_ABI (\d+)", header)[0])
    assert size == 8 * len(fields(header, "cry_kernels"))
    name = ctypes.cast(at + 16, ctypes.POINTER(ctypes.c_char_p))[0]
    assert name.decode() == (isa or available_isas()[-1])
    assert at == pointer(crystalline.kernel_table(name.decode()))
    with pytest.raises(ValueError, match="incorrect name"):
        pointer(crystalline.kernel_table(isa), b"crystalline.other")


def test_the_capsule_can_be_imported_by_its_name() -> None:
    get = ctypes.pythonapi.PyCapsule_Import
    get.restype, get.argtypes = ctypes.c_void_p, [ctypes.c_char_p, ctypes.c_int]
    assert get(b"crystalline.cry_kernels", 0) == pointer(crystalline.kernel_table())


def test_no_capsule_for_an_unknown_instruction_set() -> None:
    with pytest.raises(UsageError, match="'mmx' cannot run on this CPU; choose one of portable"):
        crystalline.kernel_table("mmx")
    for other in (5, "portable\0", ["portable"]):
        with pytest.raises(UsageError, match="cannot run on this CPU; choose one of portable"):
            crystalline.kernel_table(other)


def test_a_table_of_another_version_is_told_apart(tmp_path: Path) -> None:
    done = run_program(compiled("table_fit", [], tmp_path))
    assert (done.returncode, done.stdout) == (0, "same 1, longer 1, shorter 0, other abi 0\n")

"""CPU features by their two names: LLVM's say what code may use, those of Linux (/proc/cpuinfo) what a machine has.

Only features that a compiler uses on its own or that a schedule may ask for; those of operating systems are left out.

Sources: LLVM 22, AArch64Features.td and X86.td; Linux, Documentation/arch/arm64/elf_hwcaps.rst and
arch/x86/include/asm/cpufeatures.h.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tvm_passes.compat import Target, tvm

if TYPE_CHECKING:
    from collections.abc import Mapping, Set

_AARCH64 = """
    fp-armv8=fp neon=asimd aes=aes,pmull sha2=sha1,sha2 sha3=sha3,sha512 sm4=sm3,sm4 crc=crc32 lse=atomics rdm=asimdrdm
    fullfp16=fphp,asimdhp fp16fml=asimdfhm rcpc=lrcpc dotprod=asimddp jsconv=jscvt complxnum=fcma i8mm=i8mm bf16=bf16
    sve=sve sve2=sve2 sme=sme sme2=sme2
"""
_X86_64 = """
    sse3=pni ssse3=ssse3 sse4.1=sse4_1 sse4.2=sse4_2 sse4a=sse4a popcnt=popcnt lzcnt=abm movbe=movbe bmi=bmi1 bmi2=bmi2
    adx=adx aes=aes pclmul=pclmulqdq sha=sha_ni gfni=gfni vaes=vaes vpclmulqdq=vpclmulqdq avx=avx avx2=avx2 fma=fma
    fma4=fma4 xop=xop f16c=f16c avxvnni=avx_vnni avxvnniint8=avx_vnni_int8 avxvnniint16=avx_vnni_int16 avxifma=avx_ifma
    avxneconvert=avx_ne_convert avx512f=avx512f avx512cd=avx512cd avx512bw=avx512bw avx512dq=avx512dq avx512vl=avx512vl
    avx512ifma=avx512ifma avx512vbmi=avx512vbmi avx512vbmi2=avx512_vbmi2 avx512vnni=avx512_vnni
    avx512bitalg=avx512_bitalg avx512vpopcntdq=avx512_vpopcntdq avx512vp2intersect=avx512_vp2intersect
    avx512bf16=avx512_bf16 avx512fp16=avx512_fp16 amx-tile=amx_tile amx-int8=amx_int8 amx-bf16=amx_bf16
    amx-fp16=amx_fp16
"""


def _table(text: str) -> dict[str, frozenset[str]]:
    pairs = (pair.partition("=") for pair in text.split())
    return {llvm: frozenset(linux.split(",")) for llvm, _, linux in pairs}


_LINUX_NAMES: Mapping[str, Mapping[str, frozenset[str]]] = {"aarch64": _table(_AARCH64), "x86_64": _table(_X86_64)}


def used_features(target: Target) -> frozenset[str]:
    """Features that code generated for a target may use, in the names of Linux."""
    return frozenset().union(*_known(target).values())


def excess_features(target: Target, available: Set[str]) -> list[str]:
    """Features that a target takes for granted and a machine with `available` lacks, in the names of LLVM."""
    return sorted(llvm for llvm, linux in _known(target).items() if not linux <= available)


def _known(target: Target) -> dict[str, frozenset[str]]:
    names = _LINUX_NAMES.get(architecture_of(target), {})
    of_llvm = tvm.get_global_func("target.llvm_get_cpu_features")
    return {feature: names[feature] for feature in of_llvm(target) if feature in names}


def architecture_of(target: Target) -> str:
    """Return the instruction set of a target, as ``uname -m`` calls it."""
    return str(target.attrs["mtriple"]).partition("-")[0]

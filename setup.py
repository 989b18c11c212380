import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent
# A wheel carries two copies of what mim looks for. openmim looks in the folder of the package;
# onedl-mim in the folder of the first path that the installer recorded, which would be
# contnet_mm-*.dist-info/, since paths are sorted. contnet_mim/ sorts before it.
MIM_FOLDERS = ('contnet_mm/.mim', 'contnet_mim/.mim')
MIM_FILES = ('model-index.yml', 'dataset-index.yml')
# setup_env and the shell scripts serve a checkout: its environments and its demo.
NOT_IN_WHEEL = ('setup_env', '*.sh', '__pycache__', '*.py[co]', 'build', '*.egg-info', '.*')


class BuildWithMim(build_py):
    """Add configs, tools and index files; an install in place finds them in the checkout."""

    def run(self):
        super().run()
        if self.editable_mode:
            return
        for folder in MIM_FOLDERS:
            target = Path(self.build_lib, folder)
            # mim refuses a config that it finds twice, as it would after a renaming.
            shutil.rmtree(target, ignore_errors=True)
            for name in ('configs', 'tools'):
                ignored = shutil.ignore_patterns(*NOT_IN_WHEEL)
                shutil.copytree(ROOT / name, target / name, ignore=ignored)
            for name in MIM_FILES:
                shutil.copy2(ROOT / name, target / name)


facts = {}
exec((ROOT / 'contnet_mm' / 'version.py').read_text(), facts)
readme = ROOT / 'README.md'

setup(
    name='contnet_mm',
    version=facts['__version__'],
    author='contnet_mm maintainers',
    description='The ConTNet backbone for MMDetection, MMSegmentation and MMPretrain',
    long_description=readme.read_text(encoding='utf-8') if readme.exists() else '',
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    packages=find_packages(include=['contnet_mm*']),
    cmdclass={'build_py': BuildWithMim},
    python_requires='>=3.10',
    # mmengine comes from one of two distributions: mmengine or onedl-mmengine. Naming either here
    # would overwrite the other in place, so that the extras name them.
    install_requires=['torch>=2.1'],
    extras_require={
        'onedl': [
            'onedl-mmengine>=0.10.12',
            'onedl-mmcv>=2.3.6',
            'onedl-mmdetection>=3.5.1',
            'onedl-mmsegmentation>=1.4.2',
            'onedl-mmpretrain>=1.3.6',
            'onedl-mim>=0.5.1',
        ],
        'openmmlab': [
            'mmengine>=0.10.7',
            'mmcv>=2.1.0',
            'mmdet>=3.3.0',
            'mmsegmentation>=1.2.2',
            'mmpretrain>=1.2.0',
            'openmim>=0.3.9',
        ],
        'demo': [
            'matplotlib>=3.7',
            'scikit-image>=0.22',
            'scikit-learn>=1.3',
            'cityscapesscripts>=2.2',
            'tqdm>=4.60',
        ],
        'safetensors': ['safetensors>=0.8.0'],
        # export_onnx: the file format, torch's translator into it, and what runs it.
        'export': ['onnx>=1.17', 'onnxscript>=0.5', 'onnxruntime>=1.20'],
        'openvino': ['openvino>=2025.0'],  # export_onnx --openvino: runs the same files
        # fetch_weights: lists and reads the authors' folder on Google Drive, which has no plain
        # addresses; the rest is done by the standard library, rich and filelock (torch has it).
        'weights': ['gdown>=6.5'],
        # visualize cam: Grad-CAM of any layer, by the library that MMPretrain's own tool uses too.
        'cam': ['grad-cam>=1.5'],
        'dev': [
            'codespell>=2.3',
            'hypothesis>=6.100',
            'pytest>=8',
            'pytest-xdist>=3.6',
            'ruff>=0.15',
        ],
    },
)
